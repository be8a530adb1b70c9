"""One episode of a trained team, with the rewards it has learned.

Axes: T steps of the episode, N agents.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs import EnvError, EnvSpec, EnvStep, Frame, HasHiddenRewards, VecEnv
from envs.frame_plots import frame_of
from marl.checkpoint import load_checkpoint
from marl.evaluate import GreedyActor
from marl.policy import Policy, restored
from marl.rewards import RewardLearner
from marl.rewards.saved import restored_reward
from marl.rollout import Collector
from marl.seeding import Seeds

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Play:
    """An episode as it is shown."""

    frames: tuple[Frame, ...]
    """(T,) each the state in which the agents take that step."""
    rewards: Array
    """(T,) what the environment paid: its dense reward, where a sparse task hides one."""
    team: Array | None
    """(T,) learned global rewards in running deviations; None: nothing was learned."""
    local: Array | None
    """(T, N) learned local rewards in running deviations; None: the model has none."""
    agents: tuple[str, ...]
    """(N,) what they are called."""


def play(
    policy: Policy, reward: RewardLearner | None, *, greedy: bool, seed: int, episode: int = 0
) -> Play:
    """Return the `episode`-th (from 0) episode of one copy; the same for the same arguments."""
    seeds = Seeds(seed)
    with policy.open_env(1) as env:
        recorder = Recorder(env, episode)
        collector = Collector(
            recorder,
            policy.norm,
            recorder.spec.max_steps * (episode + 1),
            seed=seeds.integer("evaluation environment"),
            generator=seeds.torch("evaluation actions"),
            device=torch.device("cpu"),
        )
        rollout = collector.collect(GreedyActor(policy.actor) if greedy else policy.actor)[0]
    ends = rollout.done.squeeze(-1).nonzero().squeeze(-1) + 1
    if len(ends) <= episode:
        raise EnvError(
            f"{recorder.spec.name} ended {len(ends)} episodes in {len(rollout.done)} steps; its "
            f"max_steps of {recorder.spec.max_steps} promises {episode + 1}. `marl check` tests it"
        )
    chosen = slice(int(ends[episode - 1]) if episode else 0, int(ends[episode]))
    team = local = None
    if reward is not None:
        learned = reward.rewards(rollout.transitions, rollout.done)
        team = learned.team.squeeze(-1)[chosen].double().numpy()
        local = None if learned.local is None else learned.local.squeeze(-2)[chosen]
    return Play(
        frames=tuple(recorder.frames),
        rewards=np.array(recorder.rewards[chosen], np.float64),
        team=team,
        local=None if local is None else local.double().numpy(),
        agents=tuple(policy.spec.agent_name(agent) for agent in range(policy.spec.num_agents)),
    )


def load_team(run: Path) -> tuple[Policy, RewardLearner | None]:
    """Return the policy in a run's newest checkpoint, and the reward that it is trained on.

    None stands for the reward of a run that learns none, or none yet. Both come from one reading,
    since a run that goes on may write its next checkpoint at any moment.
    """
    saved = load_checkpoint(run / "checkpoints")[1]
    policy = restored(saved, run)
    return policy, restored_reward(saved, policy.config, policy.spec, policy.norm)


class Recorder:
    """A `VecEnv` of one copy that keeps the frames of one episode, and all that was paid."""

    def __init__(self, env: VecEnv, episode: int) -> None:
        self.frames: list[Frame] = []
        self.rewards: list[float] = []
        """The dense rewards where the environment hides some, otherwise the task's."""
        self.hidden = env if isinstance(env, HasHiddenRewards) else None
        self._env = env
        self._left = episode
        self._step: EnvStep | None = None

    @property
    def spec(self) -> EnvSpec:
        """The constants of the environment."""
        return self._env.spec

    def reset(self, seed: int) -> EnvStep:
        """Reset the environment."""
        self._step = self._env.reset(seed)
        return self._step

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Keep the frame in which the agents act, if it is one of the episode, and step."""
        assert self._step is not None, "step before reset"
        if self._left == 0:
            self.frames.append(frame_of(self._env, 0, self._step, actions))
        self._step = self._env.step(actions)
        source = self._step.rewards if self.hidden is None else self.hidden.hidden_rewards()
        self.rewards.append(float(source[0]))
        self._left -= int(self._step.terminated[0] | self._step.truncated[0])
        return self._step

    def state_dict(self) -> dict[str, Any]:
        """Return the environment's state."""
        return self._env.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the environment from its state."""
        self._env.load_state_dict(state)
