"""An environment whose observations say where they come from, for tests of bookkeeping.

Axes: E environments, N agents, O observation features, A actions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs import EnvSpec, EnvStep, Fact
from marl.data.rollout import Collector

FACTS = (Fact(name="episode", meaning="number"), Fact(name="time", meaning="steps", unit="steps"))


class ScriptedEnv:
    """Environments whose episodes have scripted lengths, whatever the agents do.

    Agent i of copy c sees (c, episode, t, i), cut to its own size; the state is (c, episode, t).
    Every step pays 1 and the last one 10 times the episode's number on top. Even episodes
    terminate, odd ones are truncated. With `agents_die`, agent i takes part while t <= i. With
    `masks_actions`, action 0 of agent 0 is illegal. With `tells_facts`, the facts are (episode, t).
    With `tells_final_alive`, `final_alive` says who would take part after an episode's last step.
    The arrays of a step are overwritten by the next, as the contract allows.
    """

    def __init__(
        self,
        lengths: list[list[int]],
        *,
        obs_sizes: tuple[int, ...] = (4, 4),
        action_sizes: tuple[int, ...] = (3, 3),
        continuous: bool = False,
        agents_die: bool = False,
        tells_final_alive: bool = False,
        masks_actions: bool = False,
        tells_facts: bool = False,
    ) -> None:
        self.lengths = lengths
        self.tells_final_alive = tells_final_alive
        self.spec = EnvSpec(
            name="scripted",
            num_envs=len(lengths),
            obs_sizes=obs_sizes,
            state_size=3,
            action_kind="continuous" if continuous else "discrete",
            action_sizes=action_sizes,
            max_steps=max(max(row) for row in lengths),
            finite_horizon=False,
            masks_actions=masks_actions,
            agents_die=agents_die,
            facts=FACTS if tells_facts else (),
        )
        self.received: list[npt.NDArray[Any]] = []
        """Actions of every step so far."""

    def reset(self, seed: int) -> EnvStep:
        self.episodes = np.zeros(self.spec.num_envs, np.int64)
        self.times = np.zeros(self.spec.num_envs, np.int64)
        self._buffers: dict[str, npt.NDArray[Any]] = {}
        nowhere = np.zeros(self.spec.num_envs, np.bool_)
        return self._shown(self._view(), np.zeros(self.spec.num_envs), nowhere, nowhere)

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        self.received.append(actions.copy())
        self.times += 1
        lengths = [row[e % len(row)] for row, e in zip(self.lengths, self.episodes, strict=True)]
        done = self.times == np.array(lengths)
        rewards = 1.0 + 10.0 * self.episodes * done
        terminated = done & (self.episodes % 2 == 0)
        final = self._view()
        self.episodes += done
        self.times[done] = 0
        return self._shown(final, rewards, terminated, done & ~terminated)

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": self.episodes.copy(), "times": self.times.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes, self.times = state["episodes"].copy(), state["times"].copy()

    def _view(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        spec = self.spec
        state = np.stack([np.arange(spec.num_envs), self.episodes, self.times], axis=1)
        obs = np.zeros((spec.num_envs, spec.num_agents, 4), np.float32)
        obs[:, :, :3] = state[:, None]
        obs[:, :, 3] = np.arange(spec.num_agents)
        for agent, size in enumerate(spec.obs_sizes):
            obs[:, agent, size:] = 0.0
        return obs[:, :, : spec.obs_size], state.astype(np.float32)

    def _shown(
        self,
        final: tuple[npt.NDArray[Any], npt.NDArray[Any]],
        rewards: npt.NDArray[Any],
        terminated: npt.NDArray[np.bool_],
        truncated: npt.NDArray[np.bool_],
    ) -> EnvStep:
        spec = self.spec
        obs, state = self._view()
        alive = mask = final_alive = None
        if spec.agents_die:
            alive = self.times[:, None] <= np.arange(spec.num_agents)
        if self.tells_final_alive:
            final_alive = final[1][:, 2:] <= np.arange(spec.num_agents)
        if spec.masks_actions:
            mask = np.ones((spec.num_envs, spec.num_agents, spec.action_size), np.bool_)
            mask &= np.arange(spec.action_size) < np.array(spec.action_sizes)[:, None]
            mask[:, 0, 0] = False
        fresh = {
            "obs": obs,
            "state": state,
            "rewards": rewards.astype(np.float32),
            "terminated": terminated,
            "truncated": truncated,
            "final_obs": final[0],
            "final_state": final[1],
            "action_mask": mask,
            "alive": alive,
            "final_alive": final_alive,
            "facts": final[1][:, 1:] if spec.facts else None,
        }
        for name, array in fresh.items():
            if array is not None:
                self._buffers.setdefault(name, array.copy())[...] = array
        return EnvStep(**self._buffers)


class EchoActor:
    """Chooses action t modulo A."""

    def __init__(self, spec: EnvSpec) -> None:
        self.spec = spec

    def initial_hidden(self, num_envs: int) -> None:
        return None

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def act(
        self,
        obs: torch.Tensor,
        hidden: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        return self.chosen(obs), torch.zeros(obs.shape[:-1]), None

    def chosen(self, obs: torch.Tensor) -> torch.Tensor:
        return obs[..., 2].to(torch.int64) % self.spec.action_size

    def log_prob(
        self, obs: torch.Tensor, actions: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return torch.zeros(obs.shape[:-1])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def scripted_collector(env: ScriptedEnv, num_steps: int) -> tuple[Collector, EchoActor]:
    """Return a collector over `env`, and an actor for it."""
    collector = Collector(
        env,
        num_steps,
        seed=0,
        generator=torch.Generator().manual_seed(0),
        device=torch.device("cpu"),
    )
    return collector, EchoActor(env.spec)
