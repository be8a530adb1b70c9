"""MAPPO and IPPO: clipped policy and value updates on the team's and the agents' reward streams.

Axes: T time, E environments, N agents, O, S, A features; L steps of a chunk, C chunks, M hidden
states of a network (1 or N), H hidden units. Minibatches consist of B of R rows: a row is a step of
one environment or, of recurrent networks, a chunk of successive steps; ``*B`` are a chunk's steps
and the rows.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import Rewards, Rollout
from marl.learners.actors import CategoricalActor, GaussianActor, make_actor
from marl.learners.critics import AgentCritics, TeamCritic
from marl.learners.distributions import Distribution
from marl.learners.gae import (
    Inputs,
    Stream,
    dual_advantages,
    read_inputs,
    read_values,
    reward_stream,
    timed,
    with_absent,
    without_absent,
)
from marl.learners.losses import (
    clipped_policy_loss,
    clipped_policy_slope,
    clipped_value_loss,
    clipped_value_slope,
    policy_metrics,
)
from marl.learners.minibatches import Epoch, Rows, chunk_rows, step_rows
from marl.nn.gru import initial_hidden
from marl.nn.layers import check_finite, correlation, masked_mean, mean_count, mean_shares
from marl.nn.normalisation import TeamNorm
from marl.nn.optimizer import Optimizer, average_gradients
from marl.utils.devices import TwoThreads
from marl.utils.ranks import SINGLE, Ranks

Differentiate = Callable[[dict[str, Tensor]], dict[str, Tensor]]
"""Sets the gradient of a network to that of its loss on a minibatch, and returns metrics."""
MakePolicy = Callable[[Tensor, Tensor | None], Distribution]
"""From an actor's outputs and the legal actions to the distribution of actions."""


class Mappo:
    """Multi-agent PPO (Yu et al. 2022, arXiv 2103.01955) on one or two reward streams.

    The actor maximises a mixture of the streams' advantages (`dual_advantages`); each stream has a
    critic. The networks share nothing: each has its optimizer and works through the same
    minibatches by itself, two at a time if there are `threads`, which changes no number.
    """

    centralised = True
    """Whether critics see the team's state."""

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
        ranks: Ranks = SINGLE,
    ) -> None:
        self.config = learner
        self.ranks = ranks
        self.norm = norm
        self.num_agents = spec.num_agents
        self.horizon = spec.max_steps if spec.finite_horizon else None
        """Steps after which the task is over; None: an episode is only interrupted."""
        self.generator = generator
        seed = torch.randint(2**31, (), generator=generator, device=generator.device)
        cpu = torch.Generator().manual_seed(int(seed))
        self.actor: CategoricalActor | GaussianActor
        self.actor = self.make_actor(spec, network, norm, cpu).to(device)
        self.critics: dict[str, TeamCritic | AgentCritics] = {}
        own = partial(AgentCritics, spec, network, cpu, sees_state=self.centralised)
        self.critics["team"] = TeamCritic(spec, network, cpu) if self.centralised else own()
        if local_stream and learner.local_weight > 0.0:
            self.critics["local"] = own()
        for critic in self.critics.values():
            critic.to(device)
        self.networks = {"actor": self.actor} | self.critics
        for net in self.networks.values():
            ranks.broadcast_(net)
        self.optimizers = {
            name: Optimizer(
                net.parameters(),
                learner.learning_rate,
                learner.max_grad_norm,
                eps=1e-5,
                ranks=ranks,
            )
            for name, net in self.networks.items()
        }
        self.passes = {
            name: Passes(net, ("obs",) if name == "actor" else self._read_by(name), optimizer)
            for (name, net), optimizer in zip(
                self.networks.items(), self.optimizers.values(), strict=True
            )
        }
        self.is_recurrent = network.recurrence != "none"
        self.hidden = {
            name: initial_hidden(critic.body, spec.num_envs)
            for name, critic in self.critics.items()
        }
        """Each critic's hidden state after the rollouts so far; None if feed-forward."""
        self._threads = TwoThreads(threads if ranks.size == 1 else 1, device)

    @staticmethod
    def make_actor(
        spec: EnvSpec, network: NetworkConfig, norm: TeamNorm, generator: torch.Generator
    ) -> CategoricalActor | GaussianActor:
        """Return a new actor."""
        return make_actor(spec, network, norm, generator)

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Improve actors and critics on one rollout and return metrics.

        `remaining` in [0, 1] is the share of the run still ahead, for annealing. Rewards that are
        advantages already go to the actors as they are, and the critics learn nothing from them.
        """
        learning_rate = self.config.learning_rate * (remaining if self.config.anneal else 1.0)
        for optimizer in self.optimizers.values():
            optimizer.set_learning_rate(learning_rate)
        steps = rollout.transitions
        streams = {} if rewards.are_advantages else self._streams(rollout, rewards)
        if rewards.are_advantages:
            self.advance(rollout)
            team, local = rewards.team, rewards.local
        else:
            team = streams["team"].advantages
            local = streams["local"].advantages if "local" in streams else None
        advantages = dual_advantages(
            team, local, steps.alive, self.num_agents, self.config.local_weight, self.ranks
        )
        check_finite(self.ranks, advantages=advantages)

        epochs = self._minibatches(rollout)
        jobs = [self._improve_actor(rollout, advantages, epochs)]
        for name, stream in streams.items():
            differentiate = partial(self._differentiate_value, name)
            rows = self._critic_rows(name, rollout, stream)
            jobs.append(self._run_epochs(name, differentiate, rows, epochs))
        if self.ranks.size == 1:
            results = self._threads.in_turns(jobs)
        else:
            results = self._in_step(jobs, [self.optimizers[name] for name in ("actor", *streams)])
        improved = {k: v for metrics in results for k, v in metrics.items()}
        check_finite(self.ranks, **improved)
        metrics = {"policy/learning_rate": learning_rate}
        metrics |= dict(zip(improved, torch.stack(list(improved.values())).tolist(), strict=True))
        for name, stream in streams.items():
            metrics[f"value/explained_variance_{name}"] = float(stream.explained_variance)
        if local is not None:
            shared = team if team.ndim == 3 else team[..., None]
            similarity = correlation(local, shared, steps.alive)
            metrics["policy/advantage_correlation"] = float(similarity)
        return metrics

    def _improve_actor(
        self, rollout: Rollout, advantages: Float[Tensor, "T E N"], epochs: Sequence[Epoch]
    ) -> Generator[None, None, dict[str, Tensor]]:
        """Improve the policy of all agents at once and return the mean metrics."""
        passes, distribution = self.passes["actor"], self.actor.distribution
        differentiate = partial(self._differentiate_policy, passes, distribution)
        rows = self._actor_rows(rollout, advantages)
        return self._run_epochs("actor", differentiate, rows, epochs)

    def _run_epochs(
        self, name: str, differentiate: Differentiate, rows: "Rows", epochs: Sequence[Epoch]
    ) -> Generator[None, None, dict[str, Tensor]]:
        """Take a gradient step of one network on every minibatch and return the mean metrics.

        Between two epochs the thread may turn to another network. Where several processes train,
        it does so before every step, for which the caller averages the gradients.
        """
        totals: dict[str, Tensor] = {}
        alone = self.ranks.size == 1
        counts = None if alone else rows.mean_counts(epochs, self.ranks)
        for number, epoch in enumerate(epochs):
            for place, batch in enumerate(rows.minibatches(epoch)):
                if "present" in batch:
                    known = None if counts is None else counts[number * len(epoch) + place]
                    batch["count"] = mean_count(batch["present"]) if known is None else known
                metrics = differentiate(batch)
                if not alone:
                    yield
                self.optimizers[name].step(is_mean=True)
                totals = {key: x + totals[key] if totals else x for key, x in metrics.items()}
            if alone:
                yield
        count = sum(len(epoch) for epoch in epochs)
        return {key: total / count for key, total in totals.items()}

    def _in_step(
        self, jobs: Sequence[Generator[None, None, dict[str, Tensor]]], optimizers: list[Optimizer]
    ) -> list[dict[str, Tensor]]:
        """Return the results of jobs that go from minibatch to minibatch together.

        So the gradients of all networks are averaged over the processes in one exchange. A job may
        go on when others have ended.
        """
        running = dict(enumerate(jobs))
        results: dict[int, dict[str, Tensor]] = {}
        while running:
            for index, job in list(running.items()):
                try:
                    next(job)
                except StopIteration as end:
                    results[index] = end.value
                    del running[index]
            if running:
                average_gradients(self.ranks, [optimizers[index] for index in running])
        return [results[index] for index in range(len(jobs))]

    @torch.no_grad()
    def _differentiate_policy(
        self, passes: "Passes", distribution: MakePolicy, batch: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Differentiate the actor's loss: the clipped surrogate, less a bonus for entropy."""
        bonus, clip = self.config.entropy_coef, self.config.clip_coef
        present, count = batch.get("present"), batch.get("count")
        outputs = passes.forward(batch)
        policy = distribution(outputs, batch.get("action_mask")).explicit(batch["actions"])
        surrogate, log_ratio = clipped_policy_loss(
            policy.log_probs, batch["log_probs"], batch["advantages"], clip
        )
        loss = masked_mean(surrogate, present, count)
        share, by_entropy = mean_shares(surrogate, present, count), None
        if bonus > 0.0:
            loss = loss - bonus * masked_mean(policy.entropy, present, count)
            by_entropy = -bonus * share
        by_log_prob = share * clipped_policy_slope(log_ratio, batch["advantages"], clip)
        passes.backward(policy.backward(by_log_prob, by_entropy))
        return {"policy/loss": loss} | policy_metrics(log_ratio, present, clip)

    @torch.no_grad()
    def _differentiate_value(self, name: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Differentiate a critic's loss: the clipped squared error of its normalised values."""
        passes, present, count = self.passes[name], batch.get("present"), batch.get("count")
        aims = batch["values"], batch["targets"], self.config.value_clip
        values = passes.forward(batch)
        loss = masked_mean(clipped_value_loss(values, *aims), present, count)
        by_value = mean_shares(values, present, count) * clipped_value_slope(values, *aims)
        passes.backward(by_value)
        return {f"value/loss_{name}": loss}

    @torch.no_grad()
    def _streams(self, rollout: Rollout, rewards: Rewards) -> dict[str, Stream]:
        """Return the reward streams that there are, and carry their critics' hidden states on."""
        streams = {}
        if self.horizon is not None:  # nothing comes after the limit, also where it interrupts
            steps = replace(rollout.transitions, terminated=rollout.done)
            rollout = replace(rollout, transitions=steps)
        for name, inputs in self._critic_inputs(rollout).items():
            reward, present = rewards.team, None
            if name == "team" and not self.centralised:
                reward = reward.unsqueeze(-1).expand(*reward.shape, self.num_agents)
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
                ranks=self.ranks,
            )
            self.hidden[name] = streams[name].next_hidden
        return streams

    def _critic_inputs(self, rollout: Rollout) -> dict[str, Inputs]:
        """Return what each critic reads of a rollout."""
        inputs = read_inputs(rollout, self.norm)
        valued = without_absent(inputs, rollout, self.norm)  # where the absent have a value, too
        chosen = {"team": inputs if self.centralised else valued}
        if "local" in self.critics:
            chosen["local"] = inputs if self.config.absence == "ends" else valued
        if self.horizon is None:
            return chosen
        tell = partial(timed, max_steps=self.horizon, in_state=self.centralised)
        return {name: tell(inputs, rollout) for name, inputs in chosen.items()}

    @torch.no_grad()
    def advance(self, rollout: Rollout) -> None:
        """Carry recurrent critics' hidden states over a rollout that nothing is learned from."""
        if not self.is_recurrent:
            return
        for name, inputs in self._critic_inputs(rollout).items():
            critic, length = self.critics[name], self.config.chunk_steps
            read = read_values(critic, inputs, rollout, self.hidden[name], length)
            self.hidden[name] = read.next_hidden

    def _minibatches(self, rollout: Rollout) -> list[Epoch]:
        """Return the rows of every minibatch, epoch by epoch."""
        num_steps, num_envs = rollout.truncated.shape
        num_rows = num_envs * -(-num_steps // (self.config.chunk_steps if self.is_recurrent else 1))
        size, device = -(-num_rows // self.config.minibatches), self.generator.device
        return [
            torch.randperm(num_rows, generator=self.generator, device=device).split(size)
            for _ in range(self.config.epochs)
        ]

    def _actor_rows(self, rollout: Rollout, advantages: Float[Tensor, "T E N"]) -> Rows:
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

    def _critic_rows(self, name: str, rollout: Rollout, stream: Stream) -> Rows:
        """Return what a critic's loss reads."""
        return self._rows(
            stream.targets,
            rollout,
            stream.chunk_hidden,
            stream.present,
            values=stream.values,
            targets=stream.targets,
            **{key: getattr(stream.inputs, key) for key in self._read_by(name)},
        )

    def _read_by(self, name: str) -> tuple[str, ...]:
        """Return what a critic reads: the state, its agents' observations, or both."""
        if not self.centralised:
            return ("obs",)
        return ("state",) if name == "team" else ("obs", "state")

    def _rows(
        self,
        like: Tensor,
        rollout: Rollout,
        hidden: Tensor | None,
        present: Tensor | None,
        **x: Tensor | None,
    ) -> Rows:
        """Return the rows of tensors `x` for a loss of the shape of `like`."""
        if hidden is None:
            return step_rows(present=present, **x)
        length = self.config.chunk_steps
        if present is None and len(rollout.starts) % length:
            present = torch.ones_like(like, dtype=torch.bool)
        return chunk_rows(hidden, rollout.starts, length, present=present, **x)

    def state_dict(self) -> dict[str, Any]:
        """Return networks (value normalisers included), optimizers and hidden states."""
        return {
            "actor": self.actor.state_dict(),
            "critics": {name: critic.state_dict() for name, critic in self.critics.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items()},
            "hidden": self.hidden,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner built with the same settings."""
        self.actor.load_state_dict(state["actor"])
        for name, critic in self.critics.items():
            critic.load_state_dict(state["critics"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        device = self.generator.device
        self.hidden = {
            name: None if hidden is None else hidden.to(device)
            for name, hidden in state["hidden"].items()
        }


class Ippo(Mappo):
    """Independent PPO (de Witt et al. 2020, arXiv 2011.09533): critics do not see the state.

    The team's stream has a value of every agent, V_i(o_i), and so an advantage of every agent; the
    local stream, where the reward has one, keeps its own critics.
    """

    centralised = False


class Passes:
    """The forward and the backward pass of an actor or a critic over a minibatch.

    Those of networks with shared weights are written out (`ExplicitMLP`, `ExplicitGRU`); of others
    autograd records the first and runs the second.
    """

    def __init__(self, network: Any, reads: tuple[str, ...], optimizer: Optimizer) -> None:
        """`reads` names those tensors of a minibatch that an explicit network reads."""
        self.network, self.reads, self.optimizer = network, reads, optimizer
        self.is_critic = isinstance(network, TeamCritic | AgentCritics)
        self._recorded: Tensor | None = None

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Return an actor's outputs (*B, N, A), or a critic's values (*B) or (*B, N)."""
        if explicit := self.network.passes:
            memory = ("hidden", "starts") if "hidden" in batch else ()
            outputs = explicit.forward(*(batch[name] for name in (*memory, *self.reads)))
            return outputs.squeeze(-1) if self.is_critic else outputs
        self.optimizer.zero_grad()
        inputs = [batch.get(name) for name in (("obs", "state") if self.is_critic else ("obs",))]
        with torch.enable_grad():
            if "hidden" in batch:
                outputs, _ = self.network.unroll(*inputs, batch["hidden"], batch["starts"])
            else:
                outputs = self.network(*inputs)
        self._recorded = outputs
        return outputs.detach()

    def backward(self, gradient: Tensor) -> None:
        """Set the network's gradient, given the loss's by what the last `forward` returned."""
        if explicit := self.network.passes:
            explicit.set_gradients(gradient.unsqueeze(-1) if self.is_critic else gradient)
        else:
            assert self._recorded is not None
            self._recorded.backward(gradient)
            self._recorded = None
