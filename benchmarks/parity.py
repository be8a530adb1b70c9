"""Compare the batched multi-agent MuJoCo with gymnasium-robotics' ``mamujoco_v1``.

Both run freely from the same positions and velocities under the same actions, and both are
restarted where the original says that the episode is over. Run it with::

    python -m benchmarks.parity --steps 1000 > benchmarks/results/parity.md
"""

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium_robotics
import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import TimeLimit
from gymnasium_robotics.envs.multiagent_mujoco.coupled_half_cheetah import CoupledHalfCheetahEnv
from gymnasium_robotics.envs.multiagent_mujoco.mujoco_multi import MultiAgentMujocoEnv

from envs.base import EnvStep
from envs.catalogue import MAMUJOCO_NAMES
from envs.mujoco.mamujoco import MaMuJoCo, scenario_from_name
from envs.mujoco.scenarios import DenseTendons, in_fixed_order, without_compiler_warnings

QUANTITIES = ("obs", "state", "reward", "terminated", "truncated")


@contextmanager
def _dense_tendons(env: Any) -> Iterator[None]:
    """Let the original index ``ten_J`` as it does, although MuJoCo 4 stores it sparse."""
    real = env.data
    env.data = DenseTendons(env.model, real)
    try:
        yield
    finally:
        env.data = real


class _Coupled(CoupledHalfCheetahEnv):  # type: ignore[misc]  # untyped base
    def _get_obs(self) -> npt.NDArray[np.float64]:
        with _dense_tendons(self):
            return np.asarray(super()._get_obs())


class _CoupledTeam(MultiAgentMujocoEnv):  # type: ignore[misc]  # untyped base
    def _get_obs_agent(self, agent_id: int, data: Any = None) -> npt.NDArray[np.float64]:
        with _dense_tendons(self.single_agent_env.unwrapped):
            return np.asarray(super()._get_obs_agent(agent_id, data))


def make_original(scenario: str, partition: str, agent_obsk: int) -> Any:
    """Return ``mamujoco_v1``, with two repairs that leave its numbers as they are.

    CoupledHalfCheetah is given the dense tendon Jacobian it expects, and Pusher's two joints of
    the same label are put in an order that does not depend on memory addresses.
    """
    if scenario == "CoupledHalfCheetah":
        env = TimeLimit(_Coupled(), max_episode_steps=1000)
        return _CoupledTeam(scenario, partition, agent_obsk, gym_env=env)
    original = MultiAgentMujocoEnv(scenario, partition, agent_obsk)
    original.k_dicts = [in_fixed_order(neighbours) for neighbours in original.k_dicts]
    return original


class Original:
    """One ``mamujoco_v1`` environment that follows one copy of ours."""

    def __init__(self, scenario: str, partition: str, agent_obsk: int) -> None:
        with without_compiler_warnings():
            self._env = make_original(scenario, partition, agent_obsk)
        self._single = self._env.single_agent_env.unwrapped

    def restart(self, ours: MaMuJoCo, copy: int) -> None:
        """Begin an episode from the positions and velocities of our copy."""
        self._env.reset()
        mujoco.mj_resetData(self._single.model, self._single.data)
        self._single.set_state(ours.bodies.qpos[copy], ours.bodies.qvel[copy])

    def step(self, actions: npt.NDArray[np.float64]) -> tuple[float, bool, bool]:
        """Apply (N, A) actions in [-1, 1]; return reward, terminated and truncated."""
        chosen = {}
        for agent, action in zip(self._env.possible_agents, actions, strict=True):
            space = self._env.action_space(agent)
            limit = self._single.model.actuator_ctrlrange[0, 1]
            chosen[agent] = action[: space.shape[0]] * limit
        _, reward, terminated, truncated, _ = self._env.step(chosen)
        first = self._env.possible_agents[0]
        return reward[first], terminated[first], truncated[first] and not terminated[first]

    def obs_error(self, obs: npt.NDArray[np.float64]) -> float:
        """Return the largest difference to our (N, O) observations, padding included."""
        expected = np.zeros_like(obs)
        for row, values in zip(expected, self._env._get_obs().values(), strict=True):
            row[: len(values)] = values
        return float(np.abs(obs - expected).max())

    def state_error(self, state: npt.NDArray[np.float64]) -> float:
        """Return the largest difference to our (S,) state."""
        return float(np.abs(state - self._env.state()).max())


def compare(
    scenario: str, partition: str, agent_obsk: int, steps: int, num_envs: int = 2
) -> dict[str, float]:
    """Return the largest absolute difference per quantity, and the number of episode ends."""
    ours = MaMuJoCo(num_envs, scenario, partition, agent_obsk=agent_obsk, dtype="float64")
    originals = [Original(scenario, partition, agent_obsk) for _ in range(num_envs)]
    worst = dict.fromkeys((*QUANTITIES, "ends"), 0.0)
    step = ours.reset(seed=7)
    for copy, original in enumerate(originals):
        original.restart(ours, copy)
        _raise_to(worst, "obs", original.obs_error(step.obs[copy]))
        _raise_to(worst, "state", original.state_error(step.state[copy]))
    draw = np.random.default_rng(0)
    for _ in range(steps):
        actions = draw.uniform(-1, 1, (num_envs, ours.spec.num_agents, ours.spec.action_size))
        step = ours.step(actions)
        for copy, original in enumerate(originals):
            _compare_step(worst, step, copy, original, actions[copy])
            if step.terminated[copy] or step.truncated[copy]:
                worst["ends"] += 1
                original.restart(ours, copy)
                _raise_to(worst, "obs", original.obs_error(step.obs[copy]))
                _raise_to(worst, "state", original.state_error(step.state[copy]))
    return worst


def _compare_step(
    worst: dict[str, float],
    step: EnvStep,
    copy: int,
    original: Original,
    actions: npt.NDArray[np.float64],
) -> None:
    """Step the original and record how far our copy is from it."""
    reward, terminated, truncated = original.step(actions)
    _raise_to(worst, "obs", original.obs_error(step.final_obs[copy]))
    _raise_to(worst, "state", original.state_error(step.final_state[copy]))
    _raise_to(worst, "reward", abs(float(step.rewards[copy]) - reward))
    _raise_to(worst, "terminated", float(step.terminated[copy] != terminated))
    _raise_to(worst, "truncated", float(step.truncated[copy] != truncated))


def _raise_to(worst: dict[str, float], quantity: str, error: float) -> None:
    """Keep the larger error; NaN counts as infinite."""
    worst[quantity] = max(worst[quantity], error if np.isfinite(error) else np.inf)


def main() -> None:
    """Print a Markdown table of all scenarios, partitions and observation distances."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=1000, help="free-running steps per row")
    parser.add_argument("--names", nargs="*", default=list(MAMUJOCO_NAMES), help="tasks to compare")
    options = parser.parse_args()
    began = time.perf_counter()
    print("# Multi-agent MuJoCo: largest absolute difference to gymnasium-robotics\n")
    print(f"Command: `python -m benchmarks.parity --steps {options.steps}`; two environments,")
    print(
        f"float64, MuJoCo {mujoco.__version__}, "
        f"gymnasium-robotics {gymnasium_robotics.__version__}, NumPy {np.__version__}.\n"
    )
    print("| task | agent_obsk | " + " | ".join(QUANTITIES) + " | episode ends |")
    print("| --- " * (len(QUANTITIES) + 3) + "|")
    for name in options.names:
        for agent_obsk in (0, 1, 2):
            worst = compare(*scenario_from_name(name), agent_obsk, options.steps)
            cells = " | ".join(f"{worst[quantity]:.1e}" for quantity in QUANTITIES)
            row = f"| {name.replace('|', chr(92) + '|')} | {agent_obsk} | {cells} |"
            print(f"{row} {worst['ends']:.0f} |", flush=True)
    print(f"{time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
