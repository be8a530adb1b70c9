"""MAPPO: clipped policy and value updates on the team's and the local advantage streams.

Axes: T time, E environments, N agents, B rows (steps of any copy); O, S, A features.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.advantages import dual_advantages, gae
from marl.config import LearnerConfig, NetworkConfig
from marl.networks import LocalCritics, TeamCritic, make_actor
from marl.normalisers import TeamNorm
from marl.numerics import check_finite, correlation, masked_mean
from marl.types import Rewards, Rollout


@dataclass(frozen=True, kw_only=True)
class Stream:
    """One reward stream of a rollout: what its critic is trained towards."""

    values: Float[Tensor, "T E *X"]
    """Critic outputs in normalised units, before the update."""
    targets: Float[Tensor, "T E *X"]
    """Advantages plus values, in units of the reward."""
    advantages: Float[Tensor, "T E *X"]
    explained_variance: Tensor


def clipped_policy_loss(
    log_probs: Float[Tensor, "B N"],
    old_log_probs: Float[Tensor, "B N"],
    advantages: Float[Tensor, "B N"],
    clip_coef: float,
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B N"]]:
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


class Mappo:
    """Actors and critics with one optimiser; gradients are clipped network by network."""

    def __init__(
        self,
        spec: EnvSpec,
        network: NetworkConfig,
        learner: LearnerConfig,
        norm: TeamNorm,
        *,
        local_stream: bool,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.config = learner
        self.norm = norm
        self.num_agents = spec.num_agents
        self.generator = generator
        cpu = torch.Generator().manual_seed(int(torch.randint(2**31, (), generator=generator)))
        self.actor = make_actor(spec, network, cpu).to(device)
        self.team_critic = TeamCritic(spec, network, cpu).to(device)
        uses_local = local_stream and learner.local_weight > 0.0
        self.local_critics = LocalCritics(spec, network, cpu).to(device) if uses_local else None
        self.networks: dict[str, nn.Module] = {
            "actor": self.actor,
            "team_critic": self.team_critic,
        }
        if self.local_critics is not None:
            self.networks["local_critics"] = self.local_critics
        parameters = [p for net in self.networks.values() for p in net.parameters()]
        self.optimiser = torch.optim.Adam(
            parameters, lr=learner.learning_rate, eps=1e-5, fused=True
        )

    def update(self, rollout: Rollout, rewards: Rewards, remaining: float) -> dict[str, float]:
        """Improve actors and critics on one rollout and return metrics.

        `remaining` in [0, 1] is the share of the run still ahead, for annealing.
        """
        if self.config.anneal:
            for group in self.optimiser.param_groups:
                group["lr"] = self.config.learning_rate * remaining
        with torch.no_grad():
            obs, state, team, local = self._streams(rollout, rewards)
            alive = rollout.transitions.alive
            advantages = dual_advantages(
                team.advantages,
                None if local is None else local.advantages,
                alive,
                self.num_agents,
                self.config.local_weight,
            )
            check_finite(advantages=advantages)
            rows = self._rows(rollout, obs, state, advantages, team, local)
        sums = self._minibatches(rows)
        metrics = {
            "value/explained_variance_global": float(team.explained_variance),
            "policy/learning_rate": self.optimiser.param_groups[0]["lr"],
        } | sums
        if local is not None:
            metrics["value/explained_variance_local"] = float(local.explained_variance)
            metrics["policy/advantage_correlation"] = float(
                correlation(local.advantages, team.advantages.unsqueeze(-1), alive)
            )
        return metrics

    def _streams(
        self, rollout: Rollout, rewards: Rewards
    ) -> tuple[Tensor, Tensor, Stream, Stream | None]:
        """Return standardised inputs and the critics' view of each reward stream."""
        steps = rollout.transitions
        obs, state = self.norm.obs(steps.obs), self.norm.state(steps.state)
        last = rollout.done.clone()
        last[-1] = True
        ends = last.flatten().nonzero().squeeze(-1)
        end_obs = self.norm.obs(steps.next_obs.flatten(0, 1)[ends])
        end_state = self.norm.state(steps.next_state.flatten(0, 1)[ends])

        def stream(
            critic: TeamCritic | LocalCritics, reward: Tensor, present: Tensor | None
        ) -> Stream:
            """Bootstrap from real final states; elsewhere the next value is the next row's."""
            outputs = critic(obs, state)
            values = critic.value_norm.denormalise(outputs)
            next_values = torch.roll(values, -1, dims=0)
            end_values = critic.value_norm.denormalise(critic(end_obs, end_state))
            next_values.flatten(0, 1)[ends] = end_values
            advantages = gae(
                reward,
                values,
                next_values,
                steps.terminated,
                rollout.done,
                self.config.gamma,
                self.config.gae_lambda,
            )
            targets = advantages + values
            critic.value_norm.update(targets, present)
            return Stream(
                values=outputs,
                targets=targets,
                advantages=advantages,
                explained_variance=1.0 - advantages.var() / targets.var().clamp(min=1e-8),
            )

        team = stream(self.team_critic, rewards.team, None)
        local = None
        if self.local_critics is not None and rewards.local is not None:
            local = stream(self.local_critics, rewards.local, steps.alive)
        return obs, state, team, local

    def _rows(
        self,
        rollout: Rollout,
        obs: Tensor,
        state: Tensor,
        advantages: Tensor,
        team: Stream,
        local: Stream | None,
    ) -> dict[str, Tensor]:
        """Return everything a minibatch needs with time and copies flattened to B rows."""
        rows = {
            "obs": obs,
            "state": state,
            "actions": rollout.transitions.actions,
            "log_probs": rollout.log_probs,
            "advantages": advantages,
            "team_values": team.values,
            "team_targets": self.team_critic.value_norm.normalise(team.targets),
        }
        if local is not None and self.local_critics is not None:
            rows["local_values"] = local.values
            rows["local_targets"] = self.local_critics.value_norm.normalise(local.targets)
        if rollout.transitions.alive is not None:
            rows["alive"] = rollout.transitions.alive
        if rollout.transitions.action_mask is not None:
            rows["action_mask"] = rollout.transitions.action_mask
        return {name: tensor.flatten(0, 1) for name, tensor in rows.items()}

    def _minibatches(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Run the epochs; metrics stay on the device until the end."""
        count = rows["obs"].shape[0]
        size = -(-count // self.config.minibatches)
        sums: dict[str, Tensor] = {}
        steps = 0
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=self.generator, device=rows["obs"].device)
            for index in order.split(size):
                batch = {name: tensor[index] for name, tensor in rows.items()}
                for name, value in self._step(batch).items():
                    sums[name] = sums[name] + value if name in sums else value
                steps += 1
        means = torch.stack(list(sums.values())).div(steps)
        check_finite(**{f"the mean of {n}": v for n, v in zip(sums, means, strict=True)})
        return dict(zip(sums, means.tolist(), strict=True))

    def _step(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Take one gradient step on one minibatch."""
        config = self.config
        alive, mask = batch.get("alive"), batch.get("action_mask")
        parameters = self.actor(batch["obs"])
        log_probs = self.actor.log_prob(parameters, batch["actions"], mask)
        surrogate, log_ratio = clipped_policy_loss(
            log_probs, batch["log_probs"], batch["advantages"], config.clip_coef
        )
        policy_loss = masked_mean(surrogate, alive)
        loss = policy_loss
        if config.entropy_coef > 0.0:
            entropy = masked_mean(self.actor.entropy(parameters, mask), alive)
            loss = loss - config.entropy_coef * entropy
        value_loss = clipped_value_loss(
            self.team_critic(batch["obs"], batch["state"]),
            batch["team_values"],
            batch["team_targets"],
            config.value_clip,
        ).mean()
        loss = loss + value_loss
        if self.local_critics is not None and "local_targets" in batch:
            local_loss = clipped_value_loss(
                self.local_critics(batch["obs"], batch["state"]),
                batch["local_values"],
                batch["local_targets"],
                config.value_clip,
            )
            loss = loss + masked_mean(local_loss, alive)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        for network in self.networks.values():
            nn.utils.clip_grad_norm_(network.parameters(), config.max_grad_norm)
        self.optimiser.step()
        with torch.no_grad():
            log_ratio = log_ratio.detach()
            clipped = (log_ratio.exp() - 1.0).abs() > config.clip_coef
            return {
                "policy/loss": policy_loss.detach(),
                "policy/kl": masked_mean(log_ratio.exp() - 1.0 - log_ratio, alive),
                "policy/clip_fraction": masked_mean(clipped.to(log_ratio.dtype), alive),
                "value/loss_global": value_loss.detach(),
            }

    def state_dict(self) -> dict[str, Any]:
        """Return the networks (value normalisers included) and the optimiser."""
        return {name: net.state_dict() for name, net in self.networks.items()} | {
            "optimiser": self.optimiser.state_dict()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a learner built with the same settings."""
        for name, network in self.networks.items():
            network.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])
