"""MAPPO: clipped policy and value updates on the team's and the local advantage streams.

Axes: T time, E environments, N agents, B rows; O, S, A features. A row is a step of any copy; of
recurrent networks it is a chunk of successive steps, and ``*B`` are a chunk's steps and the rows.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.actors import make_actor
from marl.learners.critics import LocalCritics, TeamCritic
from marl.learners.gae import (
    Inputs,
    Stream,
    dual_advantages,
    local_inputs,
    read_inputs,
    read_values,
    reward_stream,
)
from marl.learners.optimizer import Optimizer, SideBySide
from marl.nn.gru import initial_hidden
from marl.nn.layers import check_finite, correlation, masked_mean
from marl.nn.normalisation import TeamNorm

# PPO's losses.
#
# Axes: B rows, N agents; ``*L`` any leading axes.


def clipped_policy_loss(
    log_probs: Float[Tensor, "*B N"],
    old_log_probs: Float[Tensor, "*B N"],
    advantages: Float[Tensor, "*B N"],
    clip_coef: float,
) -> tuple[Float[Tensor, "*B N"], Float[Tensor, "*B N"]]:
    """Return PPO's clipped surrogate loss (Schulman et al. 2017, eq. 7) and the log-ratio."""
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_coef, 1.0 + clip_coef)
    return -torch.minimum(ratio * advantages, clipped * advantages), log_ratio


def clipped_value_loss(
    values: Float[Tensor, "*L"],
    old_values: Float[Tensor, "*L"],
    targets: Float[Tensor, "*L"],
    clip: float,
) -> Float[Tensor, "*L"]:
    """Return the larger of the plain and the clipped squared error, all in normalised units."""
    loss = (values - targets) ** 2
    if clip == 0.0:
        return 0.5 * loss
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(loss, (near - targets) ** 2)


@torch.no_grad()
def policy_metrics(
    loss: Tensor, log_ratio: Tensor, alive: Tensor | None, clip_coef: float
) -> Tensor:
    """Return loss, approximate KL (http://joschu.net/blog/kl-approx.html) and clipped share."""
    ratio = log_ratio.exp()
    kl = masked_mean(ratio - 1.0 - log_ratio, alive)
    clipped = ((ratio - 1.0).abs() > clip_coef).to(ratio.dtype)
    return torch.stack((loss, kl, masked_mean(clipped, alive)))


# The rows that gradient steps are taken on: steps or, of recurrent networks, chunks of steps.
#
# Axes: T time, E environments, L steps of a chunk, C chunks, R rows, B of them in a minibatch, M
# hidden states of a network (1 or N), H hidden units.


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rollout cut into rows: row t * E + e is step (or chunk) t of copy e."""

    tensors: dict[str, Tensor]
    """By name, (T * E, ...); recurrent (L, C * E, ...)."""
    hidden: Float[Tensor, "R M H"] | None
    """Hidden state before each chunk; no gradient goes further back. None: rows are steps."""

    def take(self, order: Int64[Tensor, "B"]) -> dict[str, Tensor]:
        """Return some rows; with recurrent networks also ``hidden``, the state before them."""
        if self.hidden is None:
            return {name: tensor[order] for name, tensor in self.tensors.items()}
        batch = {name: tensor.index_select(1, order) for name, tensor in self.tensors.items()}
        return batch | {"hidden": self.hidden[order]}


def step_rows(**tensors: Tensor | None) -> Rows:
    """Return those (T, E, ...) tensors that there are, every step of every copy a row."""
    flat = {name: tensor.flatten(0, 1) for name, tensor in tensors.items() if tensor is not None}
    return Rows(tensors=flat, hidden=None)


def chunk_rows(
    hidden: Float[Tensor, "C E M H"],
    starts: Bool[Tensor, "T E"],
    length: int,
    *,
    present: Tensor | None,
    **tensors: Tensor | None,
) -> Rows:
    """Return those (T, E, ...) tensors that there are, every `length` steps of a copy a row.

    Where T is no multiple of `length` the last chunks are filled up with steps not `present`.
    """
    chunks = {"starts": starts, "present": present} | tensors
    return Rows(
        tensors={name: chunked(x, length) for name, x in chunks.items() if x is not None},
        hidden=hidden.flatten(0, 1),
    )


def chunked(tensor: Tensor, length: int) -> Tensor:
    """Return a (T, E, ...) tensor as (L, C * E, ...), zero (False) beyond T."""
    missing = -len(tensor) % length
    if missing:
        tensor = torch.cat((tensor, tensor.new_zeros(missing, *tensor.shape[1:])))
    return tensor.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)


Epoch = Sequence[Int64[Tensor, "B"]]
"""The rows of every minibatch."""
Job = Generator[None, None, dict[str, Tensor]]
"""One network's update: yields after every epoch and returns metrics."""


class Mappo:
    """One actor network, a team critic and local critics, which share nothing.

    With `threads` > 1 two of them at a time are updated side by side, in turns of one epoch; each
    works through the same minibatches in its own order of operations, so the numbers do not depend
    on the threads.
    """

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        learner: LearnerConfig,
        norm: TeamNorm,
        *,
        local_stream: bool,
        threads: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = learner
        self.norm = norm
        self.num_agents = spec.num_agents
        self.generator = generator
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        cpu = torch.Generator().manual_seed(int(seed))
        self.actor = make_actor(spec, network, cpu).to(device)
        self.team_critic = TeamCritic(spec, network, cpu).to(device)
        uses_local = local_stream and learner.local_weight > 0.0
        self.local_critics = LocalCritics(spec, network, cpu).to(device) if uses_local else None
        self.networks: dict[str, nn.Module] = {
            name: module
            for name, module in (
                ("actor", self.actor),
                ("local_critics", self.local_critics),
                ("team_critic", self.team_critic),
            )
            if module is not None
        }
        self.optimizers = {
            name: Optimizer(
                network.parameters(), learner.learning_rate, learner.max_grad_norm, eps=1e-5
            )
            for name, network in self.networks.items()
        }
        self._side_by_side = SideBySide(threads, device)
        self.is_recurrent = network.recurrence != "none"
        critics = {"team_critic": self.team_critic, "local_critics": self.local_critics}
        self.critics = {name: critic for name, critic in critics.items() if critic is not None}
        self.hidden = {
            name: initial_hidden(critic.body, spec.num_envs)
            for name, critic in self.critics.items()
        }
        """Each critic's hidden state after the rollouts so far; None if feed-forward."""

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Improve actors and critics on one rollout and return metrics.

        `remaining` in [0, 1] is the share of the run still ahead, for annealing.
        """
        learning_rate = self.config.learning_rate * (remaining if self.config.anneal else 1.0)
        for optimizer in self.optimizers.values():
            optimizer.set_learning_rate(learning_rate)

        steps = rollout.transitions
        with torch.no_grad():
            inputs = read_inputs(rollout, self.norm)
            own_inputs = local_inputs(inputs, rollout, self.norm, self.config.absence)
            stream = partial(reward_stream, rollout=rollout, config=self.config)
            hidden = self.hidden
            team = stream(
                self.team_critic,
                rewards.team,
                inputs=inputs,
                per_agent=False,
                hidden=hidden["team_critic"],
            )
            hidden["team_critic"] = team.next_hidden
            local = None
            if self.local_critics is not None and rewards.local is not None:
                local = stream(
                    self.local_critics,
                    rewards.local,
                    inputs=own_inputs,
                    per_agent=True,
                    hidden=hidden["local_critics"],
                )
                hidden["local_critics"] = local.next_hidden
            advantages = dual_advantages(
                team.advantages,
                None if local is None else local.advantages,
                steps.alive,
                self.num_agents,
                self.config.local_weight,
            )
            check_finite(advantages=advantages)

        num_steps, num_envs = steps.terminated.shape
        length = self.config.chunk_length if self.is_recurrent else 1
        epochs = self._minibatches(-(-num_steps // length) * num_envs)
        jobs = [
            self._improve_actor(rollout, inputs, advantages, epochs),
            self._improve_critic("team", inputs, team, None, epochs),
        ]
        if local is not None:
            valued = steps.alive if self.config.absence == "ends" else None
            jobs.insert(1, self._improve_critic("local", own_inputs, local, valued, epochs))
        metrics = {
            "policy/learning_rate": learning_rate,
            "value/explained_variance_team": float(team.explained_variance),
        } | self._run(jobs)
        if local is not None:
            metrics["value/explained_variance_local"] = float(local.explained_variance)
            metrics["policy/advantage_correlation"] = float(
                correlation(local.advantages, team.advantages.unsqueeze(-1), steps.alive)
            )
        return metrics

    @torch.no_grad()
    def advance(self, rollout: Rollout) -> None:
        """Carry recurrent critics' hidden states over a rollout that nothing is learned from."""
        if self.is_recurrent:
            inputs = read_inputs(rollout, self.norm)
            own_inputs = local_inputs(inputs, rollout, self.norm, self.config.absence)
            for name, critic in self.critics.items():
                read_by = own_inputs if name == "local_critics" else inputs
                length = self.config.chunk_length
                read = read_values(critic, read_by, rollout, self.hidden[name], length)
                self.hidden[name] = read.next_hidden

    def _minibatches(self, rows: int) -> list[Epoch]:
        """Return the rows of every minibatch, epoch by epoch."""
        size = -(-rows // self.config.minibatches)
        device = self.generator.device
        return [
            torch.randperm(rows, generator=self.generator, device=device).split(size)
            for _ in range(self.config.epochs)
        ]

    def _run(self, jobs: Sequence[Job]) -> dict[str, float]:
        """Run independent jobs, side by side if there are threads, and return their metrics."""
        results = self._side_by_side.in_turns(jobs)
        metrics = {name: value for result in results for name, value in result.items()}
        check_finite(**metrics)
        return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))

    def _rows(
        self,
        hidden: Tensor | None,
        starts: Bool[Tensor, "T E"],
        *,
        like: Tensor,
        present: Tensor | None,
        **tensors: Tensor | None,
    ) -> Rows:
        """Return the rows of a network's minibatches; its loss has the shape of `like`."""
        if hidden is None:
            return step_rows(present=present, **tensors)
        length = self.config.chunk_length
        if present is None and len(starts) % length:
            present = torch.ones_like(like, dtype=torch.bool)
        return chunk_rows(hidden, starts, length, present=present, **tensors)

    def _improve_actor(
        self,
        rollout: Rollout,
        inputs: Inputs,
        advantages: Float[Tensor, "T E N"],
        epochs: list[Epoch],
    ) -> Job:
        """Improve the actor on every minibatch and return mean metrics."""
        steps = rollout.transitions
        rows = self._rows(
            rollout.hidden,
            inputs.starts,
            like=advantages,
            present=steps.alive,
            obs=inputs.obs,
            actions=rollout.sampled_actions,
            log_probs=rollout.log_probs,
            advantages=advantages,
            action_mask=steps.action_mask,
        )
        sums = torch.zeros(3, device=advantages.device)
        for epoch in epochs:
            for order in epoch:
                sums += self._actor_step(rows.take(order))
            yield
        names = ("policy/loss", "policy/kl", "policy/clip_fraction")
        return dict(zip(names, sums / _count(epochs), strict=True))

    def _actor_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Take one gradient step and return its metrics."""
        alive, mask = batch.get("present"), batch.get("action_mask")
        parameters = _outputs(self.actor, batch, "obs")
        surrogate, log_ratio = clipped_policy_loss(
            self.actor.log_prob(parameters, batch["actions"], mask),
            batch["log_probs"],
            batch["advantages"],
            self.config.clip_coef,
        )
        loss = masked_mean(surrogate, alive)
        if self.config.entropy_coef > 0.0:
            entropy = masked_mean(self.actor.entropy(parameters, mask), alive)
            loss = loss - self.config.entropy_coef * entropy
        self.optimizers["actor"].minimize(loss)
        return policy_metrics(loss.detach(), log_ratio.detach(), alive, self.config.clip_coef)

    def _improve_critic(
        self,
        name: str,
        inputs: Inputs,
        stream: Stream,
        present: Tensor | None,
        epochs: list[Epoch],
    ) -> Job:
        """Improve one stream's critic on every minibatch and return its mean loss."""
        critic = "team_critic" if name == "team" else "local_critics"
        network, optimizer = self.networks[critic], self.optimizers[critic]
        rows = self._rows(
            stream.chunk_hidden,
            inputs.starts,
            like=stream.targets,
            present=present,
            obs=inputs.obs,
            state=inputs.state,
            values=stream.values,
            targets=stream.targets,
        )
        total = torch.zeros((), device=stream.values.device)
        for epoch in epochs:
            for order in epoch:
                batch = rows.take(order)
                loss = clipped_value_loss(
                    _outputs(network, batch, "obs", "state"),
                    batch["values"],
                    batch["targets"],
                    self.config.value_clip,
                )
                loss = masked_mean(loss, batch.get("present"))
                optimizer.minimize(loss)
                total += loss.detach()
            yield
        return {f"value/loss_{name}": total / _count(epochs)}

    def state_dict(self) -> dict[str, Any]:
        """Return every network (value normaliser included), its optimizer, and hidden states."""
        state: dict[str, Any] = {
            name: {
                "network": network.state_dict(),
                "optimizer": self.optimizers[name].state_dict(),
            }
            for name, network in self.networks.items()
        }
        return state | {"hidden": self.hidden} if self.is_recurrent else state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner built with the same settings."""
        if self.is_recurrent:
            device = self.generator.device
            self.hidden = {
                name: None if hidden is None else hidden.to(device)
                for name, hidden in state["hidden"].items()
            }
        for name, network in self.networks.items():
            network.load_state_dict(state[name]["network"])
            self.optimizers[name].load_state_dict(state[name]["optimizer"])


def _count(epochs: Sequence[Epoch]) -> int:
    """Return the number of minibatches."""
    return sum(len(epoch) for epoch in epochs)


def _outputs(network: Any, batch: dict[str, Tensor], *names: str) -> Tensor:
    """Return a network's outputs for a minibatch, given the inputs of these names."""
    inputs = [batch[name] for name in names]
    if "hidden" not in batch:
        return network(*inputs)
    return network.unroll(*inputs, batch["hidden"], batch["starts"])[0]
