"""Policies fitted to the steps of episodes: behaviour cloning and objectives of the same kind.

Axes: M episodes, K steps of each, N agents; ``*L`` any leading axes.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from envs import EnvSpec
from envs.parts import part_layout, wrong_parts
from marl.config import RewardConfig
from marl.data.replay import every_step, sampled
from marl.data.types import Transitions
from marl.learners.actors import GaussianActor
from marl.nn.optimizer import Optimizer
from marl.preferences.dataset import DatasetError, EpisodeArchive
from marl.rewards.budget import BLOCKS, FitResult, descend, never
from marl.rewards.demonstrations import chi_square
from marl.rewards.ratio import Density, NetworkActor, PolicyRatio, distributions, log_probs

Objective = Literal["nll", "chi2", "hellinger"]

MIN_LOG_STD = -3.0
"""Least logarithm of a deviation that is fitted: without it, equal actions would shrink it to 0."""
LEAST_U = -0.5
"""Below it Hellinger's u / (1 + u), which falls to -inf at -1, goes on as its tangent."""
_ROUNDING = 1e-5
"""By which a stored action may exceed its bounds."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Some steps of M episodes."""

    transitions: Transitions
    """(M, K)."""
    weights: Float[Tensor, "M K"]
    """What each step counts; 0 for padding."""

    def by_agent(self) -> Float[Tensor, "M K N"]:
        """Return what the action of each agent counts; nothing where it is absent."""
        weights = self.weights.unsqueeze(-1)
        alive = self.transitions.alive
        if alive is None:
            return weights.expand(self.transitions.obs.shape[:-1])
        return weights * alive


StepLoss = Callable[[Steps], tuple[Tensor, Tensor]]
"""Returns the weighted sum of a loss over some steps, and the sum of the weights."""


class StepDraws:
    """Random steps of some episodes to train on, and all steps of others to measure with."""

    def __init__(
        self,
        archive: EpisodeArchive,
        train: Int64[Tensor, "M"],
        held_out: Int64[Tensor, "_"],
        config: RewardConfig,
        generator: torch.Generator,
    ) -> None:
        """`train` and `held_out` are numbers of episodes; `config` says how many are drawn."""
        self.archive = archive
        self.train, self.held_out = train, held_out
        self.config = config
        self.generator = generator
        self.reads_history = config.recurrence != "none"

    def batch(self) -> Steps:
        """Return sampled steps of ``reward.batch_episodes`` episodes, or of all if these are fewer.

        Every step is as likely as any other: those of long episodes are more.
        """
        order = torch.randperm(len(self.train), generator=self.generator, device=self.train.device)
        chosen = self.archive.episodes(self.train[order[: self.config.batch_episodes]])
        transitions, weights, _ = sampled(
            chosen,
            self.config,
            self.generator,
            reads_history=self.reads_history,
        )
        return Steps(transitions=transitions, weights=weights)

    def every(self, numbers: Int64[Tensor, "M"]) -> Iterator[Steps]:
        """Yield all steps of some episodes, in parts."""
        yield from steps_of(self.archive, numbers, reads_history=self.reads_history)


def steps_of(
    archive: EpisodeArchive, numbers: Int64[Tensor, "M"], *, reads_history: bool
) -> Iterator[Steps]:
    """Yield all steps of some episodes, in parts."""
    for transitions, weights, _ in every_step(
        archive.episodes(numbers), reads_history=reads_history
    ):
        yield Steps(transitions=transitions, weights=weights)


def cloning_loss(
    actor: Density, factors: Callable[[Transitions], Tensor] | None = None
) -> StepLoss:
    """Return behaviour cloning's loss, -log pi_i(a_i | o_i) of every action, times its factor.

    `factors` returns the (*L, N) factors; without it all are 1.
    """

    def loss(steps: Steps) -> tuple[Tensor, Tensor]:
        weights = steps.by_agent()
        surprise = -log_probs(actor, steps.transitions, "policy")[0]
        if factors is not None:
            surprise = surprise * factors(steps.transitions)
        # Of the absent an action may even be illegal: it must leave no trace.
        surprise = surprise.where(weights > 0, torch.zeros_like(surprise))
        return (weights * surprise).sum(), weights.sum()

    return loss


def divergence_loss(ratio: PolicyRatio, objective: Objective) -> StepLoss:
    """Return -phi(u) of every step, u = R = beta sum_i log(pi_i / pi_ref,i).

    The team's ratio is the reward that demonstrations reveal (arXiv 2507.00018); phi(u) = u would
    be behaviour cloning, in which the reference drops out. With phi(u) = u - u^2 / 4 (chi-square)
    or u / (1 + u) (Hellinger) a step that is far more likely than under the reference counts less.
    """
    phi = {"chi2": chi_square, "hellinger": hellinger}[objective]

    def loss(steps: Steps) -> tuple[Tensor, Tensor]:
        gain = phi(ratio(steps.transitions).team)
        return -(steps.weights * gain).sum(), steps.weights.sum()

    return loss


def hellinger(u: Float[Tensor, "*L"]) -> Float[Tensor, "*L"]:
    """Return u / (1 + u), and below `LEAST_U` its tangent there."""
    near = u.clamp(min=LEAST_U)
    return near / (1.0 + near) + (u - near) / (1.0 + LEAST_U) ** 2


def fit_steps(
    actor: NetworkActor,
    loss: StepLoss,
    draws: StepDraws,
    *,
    steps: int,
    learning_rate: float,
    max_grad_norm: float,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] = never,
) -> FitResult:
    """Fit a policy and keep the one of the lowest loss on the held-out episodes.

    `progress` is told how many gradient steps were taken; once `stop` returns True none follows.
    """
    weights = [parameter for parameter in actor.parameters() if parameter.requires_grad]
    optimizer = Optimizer(weights, learning_rate, max_grad_norm)
    taken = 0

    def step() -> bool:
        nonlocal taken
        total, count = loss(draws.batch())
        optimizer.minimize(total / count.clamp(min=1e-9))
        if isinstance(actor, GaussianActor) and actor.log_std.requires_grad:
            with torch.no_grad():
                actor.log_std.clamp_(min=MIN_LOG_STD)
        taken += 1
        if progress is not None:
            progress(taken)
        return True

    return descend(
        step,
        lambda: mean_loss(loss, draws.every(draws.held_out)),
        weights,
        steps=steps,
        block=-(-steps // BLOCKS),
        stop=stop,
    )


@torch.no_grad()
def mean_loss(loss: StepLoss, parts: Iterator[Steps]) -> float:
    """Return the mean of a loss over all steps; NaN of none."""
    total = count = 0.0
    for steps in parts:
        some, weight = loss(steps)
        total, count = total + float(some), count + float(weight)
    return total / count if count else float("nan")


def mean_entropy(actor: NetworkActor, parts: Iterator[Steps]) -> float:
    """Return the mean entropy of an agent's actions over all steps, in nats; NaN of none."""

    def entropy(steps: Steps) -> tuple[Tensor, Tensor]:
        weights = steps.by_agent()
        return (
            weights * distributions(actor, steps.transitions, "policy")[0].entropy()
        ).sum(), weights.sum()

    return mean_loss(entropy, parts)


def check_playable(archive: EpisodeArchive, spec: EnvSpec, where: str) -> None:
    """Raise `DatasetError` naming the first action that no policy of the environment can take.

    That is one that its mask forbids, one beyond an agent's own, or a number outside of [-1, 1].
    """
    sizes = torch.tensor(spec.action_sizes, device=archive.numbers.device)
    own = torch.arange(spec.action_size, device=sizes.device) < sizes[:, None]
    layout = part_layout(spec.action_parts) if spec.action_kind == "composite" else None
    every = archive.episodes(archive.numbers)
    first = 0
    for steps, weights, _ in every_step(every, reads_history=False):
        present = Steps(transitions=steps, weights=weights).by_agent() > 0
        if spec.action_kind == "discrete":
            allowed = own if steps.action_mask is None else own & steps.action_mask
            allowed = allowed.expand(*steps.actions.shape, -1)
            fits = allowed.gather(-1, steps.actions.unsqueeze(-1)).squeeze(-1)
        elif layout is not None:
            mask = None if steps.action_mask is None else steps.action_mask.cpu().numpy()
            wrong_ones = wrong_parts(layout, steps.actions.cpu().numpy(), mask)
            fits = torch.from_numpy(~wrong_ones).to(sizes.device)
        else:
            fits = ((steps.actions.abs() <= 1.0 + _ROUNDING) | ~own).all(dim=-1)
        wrong = (present & ~fits).nonzero()
        if len(wrong):
            episode, step, agent = wrong[0].tolist()
            action = steps.actions[episode, step, agent].tolist()
            raise DatasetError(
                f"{where}: in episode {int(archive.numbers[first + episode])}, step {step}, "
                f"{spec.agent_name(agent)} acts {action}, "
                + _why_not(spec, agent, action, masked=steps.action_mask is not None)
            )
        first += len(present)


def _why_not(spec: EnvSpec, agent: int, action: object, *, masked: bool) -> str:
    """Return why no policy can act so, and what to do."""
    if spec.action_kind == "composite":
        return (
            f"and its parts are {spec.action_parts[agent]}: give a legal choice among k one-hot, a "
            "number (0) in [-1, 1]"
        )
    if spec.action_kind == "continuous":
        return "and policies act in [-1, 1]: scale the actions to that"
    size = spec.action_sizes[agent]
    if masked and isinstance(action, int) and action < size:
        return "which its action_mask forbids: correct the mask, or remove the episode's file"
    return f"and has the actions 0 to {size - 1}: correct the actions, or spec.action_sizes"
