"""MAPPO: clipped policy and value updates on the team's and the agents' reward streams.

Axes: T time, E environments, N agents, O, S, A features; L steps of a chunk, C chunks, M hidden
states of a network (1 or N), H hidden units. Minibatches consist of B of R rows: a row is a step of
one environment or, of recurrent networks, a chunk of successive steps; ``*B`` are a chunk's steps
and the rows.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.actors import make_actor
from marl.learners.critics import LocalCritics, TeamCritic
from marl.learners.gae import (
    Inputs,
    Stream,
    dual_advantages,
    read_inputs,
    read_values,
    reward_stream,
    with_absent,
    without_absent,
)
from marl.nn.gru import initial_hidden
from marl.nn.layers import check_finite, correlation, masked_mean
from marl.nn.normalisation import TeamNorm
from marl.nn.optimizer import Optimizer
from marl.utils.threads import TwoThreads


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
    log_ratio: Float[Tensor, "*B N"], alive: Tensor | None, clip_coef: float
) -> dict[str, Tensor]:
    """Return approximate KL (http://joschu.net/blog/kl-approx.html) and the clipped share."""
    ratio = log_ratio.exp()
    clipped = ((ratio - 1.0).abs() > clip_coef).to(ratio.dtype)
    return {
        "policy/kl": masked_mean(ratio - 1.0 - log_ratio, alive),
        "policy/clip_fraction": masked_mean(clipped, alive),
    }


LossOf = Callable[[dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]
"""A network's loss on a minibatch, and metrics."""
Epoch = Sequence[Int64[Tensor, "B"]]
"""The rows of every minibatch of an epoch."""


class Mappo:
    """Multi-agent PPO (Yu et al. 2022, arXiv 2103.01955) on one or two reward streams.

    The actor maximises a mixture of the streams' advantages (`dual_advantages`); each stream has a
    critic. The networks share nothing: each has its optimizer and works through the same
    minibatches by itself, two at a time if there are `threads`, which changes no number.
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
        self.critics: dict[str, TeamCritic | LocalCritics]
        self.critics = {"team": TeamCritic(spec, network, cpu).to(device)}
        if local_stream and learner.local_weight > 0.0:
            self.critics["local"] = LocalCritics(spec, network, cpu).to(device)
        self.networks = {"actor": self.actor} | self.critics
        self.optimizers = {
            name: Optimizer(
                net.parameters(), learner.learning_rate, learner.max_grad_norm, eps=1e-5
            )
            for name, net in self.networks.items()
        }
        self.is_recurrent = network.recurrence != "none"
        self.hidden = {
            name: initial_hidden(critic.body, spec.num_envs)
            for name, critic in self.critics.items()
        }
        """Each critic's hidden state after the rollouts so far; None if feed-forward."""
        self._threads = TwoThreads(threads, device)

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Improve actors and critics on one rollout and return metrics.

        `remaining` in [0, 1] is the share of the run still ahead, for annealing.
        """
        learning_rate = self.config.learning_rate * (remaining if self.config.anneal else 1.0)
        for optimizer in self.optimizers.values():
            optimizer.set_learning_rate(learning_rate)
        steps = rollout.transitions
        streams = self._streams(rollout, rewards)
        team, local = streams["team"], streams.get("local")
        advantages = dual_advantages(
            team.advantages,
            None if local is None else local.advantages,
            steps.alive,
            self.num_agents,
            self.config.local_weight,
        )
        check_finite(advantages=advantages)

        epochs = self._minibatches(rollout)
        jobs = [
            self._run_epochs(
                "actor", self._policy_loss, self._actor_rows(rollout, advantages), epochs
            )
        ]
        for name, stream in streams.items():
            loss_of = partial(self._value_loss, name)
            jobs.append(self._run_epochs(name, loss_of, self._critic_rows(rollout, stream), epochs))
        improved = {k: v for metrics in self._threads.in_turns(jobs) for k, v in metrics.items()}
        check_finite(**improved)
        metrics = {"policy/learning_rate": learning_rate}
        metrics |= dict(zip(improved, torch.stack(list(improved.values())).tolist(), strict=True))
        for name, stream in streams.items():
            metrics[f"value/explained_variance_{name}"] = float(stream.explained_variance)
        if local is not None:
            metrics["policy/advantage_correlation"] = float(
                correlation(local.advantages, team.advantages.unsqueeze(-1), steps.alive)
            )
        return metrics

    def _run_epochs(
        self, name: str, loss_of: LossOf, rows: "Rows", epochs: Sequence[Epoch]
    ) -> Generator[None, None, dict[str, Tensor]]:
        """Take a gradient step of one network on every minibatch and return the mean metrics.

        Between two epochs the thread may turn to another network.
        """
        totals: dict[str, Tensor] = {}
        for epoch in epochs:
            for order in epoch:
                loss, metrics = loss_of(rows.take(order))
                self.optimizers[name].minimize(loss)
                totals = {key: x + totals[key] if totals else x for key, x in metrics.items()}
            yield
        count = sum(len(epoch) for epoch in epochs)
        return {key: total / count for key, total in totals.items()}

    def _policy_loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the actor's loss: the clipped surrogate, less a bonus for entropy."""
        alive, mask = batch.get("present"), batch.get("action_mask")
        parameters = outputs(self.actor, batch, "obs")
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
        metrics = policy_metrics(log_ratio.detach(), alive, self.config.clip_coef)
        return loss, {"policy/loss": loss.detach()} | metrics

    def _value_loss(self, name: str, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a critic's loss: the clipped squared error of its normalised values."""
        loss = clipped_value_loss(
            outputs(self.critics[name], batch, "obs", "state"),
            batch["values"],
            batch["targets"],
            self.config.value_clip,
        )
        loss = masked_mean(loss, batch.get("present"))
        return loss, {f"value/loss_{name}": loss.detach()}

    @torch.no_grad()
    def _streams(self, rollout: Rollout, rewards: Rewards) -> dict[str, Stream]:
        """Return the reward streams that there are, and carry their critics' hidden states on."""
        streams = {}
        for name, inputs in self._critic_inputs(rollout).items():
            reward, present = rewards.team, None
            if name == "local":
                if rewards.local is None:
                    continue
                reward, present = rewards.local, rollout.transitions.alive
                if present is not None and self.config.absence != "ends":
                    reward, present = with_absent(reward, present, self.config.absence), None
            streams[name] = reward_stream(
                self.critics[name],
                reward,
                inputs,
                rollout,
                self.config,
                present=present,
                hidden=self.hidden[name],
            )
            self.hidden[name] = streams[name].next_hidden
        return streams

    def _critic_inputs(self, rollout: Rollout) -> dict[str, Inputs]:
        """Return what each critic reads of a rollout."""
        inputs = read_inputs(rollout, self.norm)
        if "local" not in self.critics:
            return {"team": inputs}
        if self.config.absence == "ends":
            return {"team": inputs, "local": inputs}
        return {"team": inputs, "local": without_absent(inputs, rollout, self.norm)}

    @torch.no_grad()
    def advance(self, rollout: Rollout) -> None:
        """Carry recurrent critics' hidden states over a rollout that nothing is learned from."""
        if not self.is_recurrent:
            return
        for name, inputs in self._critic_inputs(rollout).items():
            critic, length = self.critics[name], self.config.chunk_length
            read = read_values(critic, inputs, rollout, self.hidden[name], length)
            self.hidden[name] = read.next_hidden

    def _minibatches(self, rollout: Rollout) -> list[Epoch]:
        """Return the rows of every minibatch, epoch by epoch."""
        num_steps, num_envs = rollout.truncated.shape
        num_rows = num_envs * -(
            -num_steps // (self.config.chunk_length if self.is_recurrent else 1)
        )
        size, device = -(-num_rows // self.config.minibatches), self.generator.device
        return [
            torch.randperm(num_rows, generator=self.generator, device=device).split(size)
            for _ in range(self.config.epochs)
        ]

    def _actor_rows(self, rollout: Rollout, advantages: Float[Tensor, "T E N"]) -> "Rows":
        """Return what the actor's loss reads."""
        steps = rollout.transitions
        return self._rows(
            advantages,
            rollout,
            rollout.hidden,
            steps.alive,
            obs=self.norm.obs(steps.obs),
            log_probs=rollout.log_probs,
            actions=rollout.sampled_actions,
            action_mask=steps.action_mask,
            advantages=advantages,
        )

    def _critic_rows(self, rollout: Rollout, stream: Stream) -> "Rows":
        """Return what a critic's loss reads."""
        return self._rows(
            stream.targets,
            rollout,
            stream.chunk_hidden,
            stream.present,
            values=stream.values,
            targets=stream.targets,
            obs=stream.inputs.obs,
            state=stream.inputs.state,
        )

    def _rows(
        self,
        like: Tensor,
        rollout: Rollout,
        hidden: Tensor | None,
        present: Tensor | None,
        **x: Tensor | None,
    ) -> "Rows":
        """Return the rows of tensors `x` for a loss of the shape of `like`."""
        if hidden is None:
            return step_rows(present=present, **x)
        length = self.config.chunk_length
        if present is None and len(rollout.starts) % length:
            present = torch.ones_like(like, dtype=torch.bool)
        return chunk_rows(hidden, rollout.starts, length, present=present, **x)

    def state_dict(self) -> dict[str, Any]:
        """Return networks (value normalisers included), optimizers and hidden states."""
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


def outputs(network: Any, batch: dict[str, Tensor], *names: str) -> Tensor:
    """Return a network's outputs for a minibatch, given the inputs of these names."""
    inputs = [batch[name] for name in names]
    if "hidden" not in batch:
        return network(*inputs)
    return network.unroll(*inputs, batch["hidden"], batch["starts"])[0]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """A rollout cut into rows: row t * E + e is step (or chunk) t of environment e."""

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
    """Return those (T, E, ...) tensors that there are, every step a row."""
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
    """Return those (T, E, ...) tensors that there are, every `length` steps a row.

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
