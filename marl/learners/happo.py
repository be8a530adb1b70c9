"""HAPPO: agents improve one after the other, each knowing how those before it have changed.

Axes: T time, E environments, N agents, O observation features, A actions, H hidden units; ``*B`` a
minibatch: rows or, of recurrent networks, a chunk's steps and the rows.
"""

import copy
from collections.abc import Generator, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from marl.data.types import Rollout
from marl.learners.actors import CategoricalActor, GaussianActor
from marl.learners.distributions import Distribution
from marl.learners.mappo import Mappo, Passes
from marl.learners.minibatches import Epoch, Rows, unchunked
from marl.nn.gru import RecurrentBody
from marl.nn.layers import AgentLinear
from marl.nn.optimizer import Optimizer


class Happo(Mappo):
    """Heterogeneous-agent PPO (Kuba et al. 2022, arXiv 2109.11251).

    In every update the agents come in a random order i_1 .. i_n. Agent i_m takes all its epochs on

        E[min(r A', clip(r) A')],    A' = M A,    M = prod over l < m of pi_new,i_l / pi_old,i_l,

    with r its own probability ratio and M the compound factor of those before it, which are done;
    so that what they have changed counts in what is good for it. A is the advantage that MAPPO has;
    critics are its own, too.

    The paper's agents have actors of their own: ``network.share_parameters = false``, where each
    also has moments of its own in the optimizer. A shared actor, the default, moves with every
    agent's turn, also for those that had theirs; M is then right at the end of each turn only.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        network = args[1]
        self.moments: list[dict[str, Any]] = []
        """Adam's moments of each agent's actor; empty where it is shared."""
        if not network.share_parameters:
            fresh = self.optimizers["actor"].state_dict()
            self.moments = [copy.deepcopy(fresh) for _ in range(self.num_agents)]

    def _improve_actor(
        self, rollout: Rollout, advantages: Float[Tensor, "T E N"], epochs: Sequence[Epoch]
    ) -> Generator[None, None, dict[str, Tensor]]:
        """Improve the agents one after the other and return their mean metrics."""
        steps = rollout.transitions
        factor = torch.ones_like(advantages[..., 0])
        found: list[dict[str, Tensor]] = []
        for agent in self._order():
            before = factor
            weighted = before * advantages[..., agent]
            metrics = yield from self._improve_agent(agent, rollout, weighted, epochs)
            alive = None if steps.alive is None else steps.alive[..., agent]
            new = self._log_probs(agent, rollout)
            factor = next_factor(before, new, rollout.log_probs[..., agent], alive)
            found.append(metrics | {"policy/factor_change": (before - 1.0).abs().mean()})
        return {name: torch.stack([each[name] for each in found]).mean() for name in found[0]}

    def _order(self) -> list[int]:
        """Return a random order of the agents, the same in all processes."""
        device = self.generator.device
        drawn = torch.randperm(self.num_agents, generator=self.generator, device=device)
        order: list[int] = self.ranks.gather(drawn.tolist())[0]
        return order

    def _improve_agent(
        self,
        agent: int,
        rollout: Rollout,
        advantages: Float[Tensor, "T E"],
        epochs: Sequence[Epoch],
    ) -> Generator[None, None, dict[str, Tensor]]:
        """Take all epochs of one agent's policy on its weighted advantages; return its metrics."""
        optimizer = self.optimizers["actor"]
        if self.moments:
            rate = {"learning_rate": optimizer.learning_rate}
            optimizer.load_state_dict(self.moments[agent] | rate)
        passes = AgentPasses(self.actor, agent, optimizer)
        rows = self._agent_rows(agent, rollout, advantages=advantages.unsqueeze(-1))
        differentiate = partial(self._differentiate_policy, passes, passes.distribution)
        metrics = yield from self._run_epochs("actor", differentiate, rows, epochs)
        if self.moments:
            self.moments[agent] = copy.deepcopy(optimizer.state_dict())
        return metrics

    def _agent_rows(self, agent: int, rollout: Rollout, **tensors: Tensor) -> Rows:
        """Return what one agent's policy reads, and further tensors of its own."""
        steps, one = rollout.transitions, slice(agent, agent + 1)
        hidden, mask = rollout.hidden, steps.action_mask
        return self._rows(
            rollout.log_probs[..., one],
            rollout,
            None if hidden is None else hidden[:, :, one],
            None if steps.alive is None else steps.alive[..., one],
            obs=self.norm.obs(steps.obs)[:, :, agent],
            log_probs=rollout.log_probs[..., one],
            actions=rollout.sampled_actions[:, :, one],
            action_mask=None if mask is None else mask[:, :, one],
            **tensors,
        )

    @torch.no_grad()
    def _log_probs(self, agent: int, rollout: Rollout) -> Float[Tensor, "T E"]:
        """Return the log-probabilities of one agent's actions under its policy as it is now."""
        rows = self._agent_rows(agent, rollout)
        batch = rows.take(torch.arange(rows.count, device=rollout.log_probs.device))
        passes = AgentPasses(self.actor, agent, self.optimizers["actor"])
        policy = passes.distribution(passes.outputs(batch), batch.get("action_mask"))
        found = policy.log_prob(batch["actions"]).squeeze(-1)
        shape = rollout.truncated.shape
        return found.view(shape) if rows.hidden is None else unchunked(found, shape)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of MAPPO and the moments of each agent's actor."""
        return super().state_dict() | {"moments": self.moments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner built with the same settings."""
        super().load_state_dict(state)
        device = self.generator.device
        self.moments = [on_device(moments, device) for moments in state["moments"]]


def next_factor(
    factor: Float[Tensor, "T E"],
    new: Float[Tensor, "T E"],
    old: Float[Tensor, "T E"],
    alive: Bool[Tensor, "T E"] | None,
) -> Float[Tensor, "T E"]:
    """Return M pi_new / pi_old, given log-probabilities; M where the agent is absent."""
    ratio = (new - old).exp()
    return factor * (ratio if alive is None else ratio.where(alive, torch.ones_like(ratio)))


class AgentPasses(Passes):
    """The passes of one agent's policy, which leave the others' outputs uncomputed."""

    def __init__(
        self, actor: CategoricalActor | GaussianActor, agent: int, optimizer: Optimizer
    ) -> None:
        super().__init__(actor, ("obs",), optimizer)
        self.actor, self.agent = actor, agent

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "*B 1 A"]:
        """Return the agent's outputs."""
        self.optimizer.zero_grad()
        with torch.enable_grad():
            self._recorded = self.outputs(batch)
        return self._recorded.detach()

    def backward(self, gradient: Tensor) -> None:
        """Set the network's gradient, given the loss's by what the last `forward` returned."""
        assert self._recorded is not None
        self._recorded.backward(gradient)
        self._recorded = None

    def outputs(self, batch: dict[str, Tensor]) -> Float[Tensor, "*B 1 A"]:
        """Return the agent's outputs of the tensors ``obs``, ``hidden`` and ``starts``."""
        body, agent = self.actor.body, self.agent
        encoder, obs = self.actor.encoder, batch["obs"]
        tokens = None
        if encoder is not None:
            obs, tokens = encoder.of_agent(obs, agent)
        if not isinstance(body, RecurrentBody):
            assert isinstance(body, nn.Sequential)
            first = body[0]
            assert isinstance(first, AgentLinear)
            x = self._with_id(obs, first.ids_at)
            outputs = own_outputs(body, x, agent)
            return self.actor.of_actions(outputs, tokens).unsqueeze(-2)
        x = own_outputs(body.before, self._with_id(obs, body.ids_at), agent)
        group = 0 if body.gru.shared else agent
        hidden = batch["hidden"].squeeze(-2)
        keep = (~batch["starts"]).to(x.dtype).unsqueeze(-1)
        states = []
        for step, kept in zip(x.unbind(0), keep.unbind(0), strict=True):
            hidden = body.gru.cell(group, step, hidden * kept)
            states.append(hidden)
        outputs = own_outputs(body.after, torch.stack(states), agent)
        return self.actor.of_actions(outputs, tokens).unsqueeze(-2)

    def distribution(
        self, outputs: Float[Tensor, "*B 1 A"], mask: Bool[Tensor, "*B 1 A"] | None = None
    ) -> Distribution:
        """Return the agent's distribution of actions; its derivatives reach the agent's part."""
        return self.actor.distribution(outputs, mask, slice(self.agent, self.agent + 1))

    def _with_id(self, x: Float[Tensor, "*B O"], at: int | None) -> Tensor:
        """Return an agent's features with its one-hot id before feature `at`, if there is one."""
        if at is None:
            return x
        ids = x.new_zeros(len(self.actor.present))
        ids[self.agent] = 1.0
        return torch.cat((x[..., :at], ids.expand(*x.shape[:-1], -1), x[..., at:]), dim=-1)


def own_outputs(layers: Iterable[nn.Module], x: Tensor, agent: int) -> Tensor:
    """Return what layers of a team make of one agent's features (*B, ...), its id included."""
    for layer in layers:
        if isinstance(layer, AgentLinear):
            weight, bias = layer.weight, layer.bias
            own = (weight, bias) if layer.shared else (weight[agent], bias[agent])
            x = nn.functional.linear(x, *own)
        else:
            x = layer(x)
    return x


def on_device(moments: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Return an optimizer's state with its tensors on a device."""
    return {
        name: [tensor.to(device) for tensor in value] if isinstance(value, list) else value
        for name, value in moments.items()
    }
