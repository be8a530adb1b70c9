"""How much of MuJoCo's own speed the batched environment keeps.

The raw rate is `mujoco.rollout`: C++ threads stepping the same model from the same states under
the same controls and warm starts that the environment met, and nothing else: no observations,
rewards, episode ends or resets. Run it with::

    python -m benchmarks.physics --threads 2
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from mujoco.rollout import Rollout

from envs.mujoco.mamujoco import MaMuJoCo
from envs.mujoco.scenarios import make_source

TASKS = (("HalfCheetah", "2x3"), ("Hopper", "3x1"), ("Ant", "2x4"))
_FULL = mujoco.mjtState.mjSTATE_FULLPHYSICS.value


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a run of T steps met: arrays of (T, E, ...), in MuJoCo's own units."""

    actions: npt.NDArray[np.float32]
    states: npt.NDArray[np.float64]
    warmstarts: npt.NDArray[np.float64]
    controls: npt.NDArray[np.float64]


def record(scenario: str, partition: str, num_envs: int, steps: int = 200) -> Trace:
    """Return the trace of uniformly random actions from a fresh start."""
    env = MaMuJoCo(num_envs, scenario, partition)
    env.reset(seed=0)
    batch, draw = env.bodies.batch, np.random.default_rng(0)
    shape = (steps, num_envs, env.spec.num_agents, env.spec.action_size)
    actions = draw.uniform(-1, 1, shape).astype(np.float32)
    data = mujoco.MjData(batch.model)
    states = np.empty((steps, num_envs, mujoco.mj_stateSize(batch.model, _FULL)))
    warmstarts, controls = [], []
    for index in range(steps):
        warmstarts.append(batch.bind("qacc_warmstart").copy())
        for copy in range(num_envs):
            batch.get_data(copy, data)
            mujoco.mj_getState(batch.model, data, states[index, copy], _FULL)
        env.step(actions[index])
        controls.append(batch.bind("ctrl").copy())
    return Trace(
        actions=actions,
        states=states,
        warmstarts=np.stack(warmstarts),
        controls=np.stack(controls),
    )


def raw_physics_rate(
    scenario: str, partition: str, trace: Trace, num_threads: int, seconds: float = 2.0
) -> float:
    """Return control steps per second, all environments together, of `mujoco.rollout`."""
    source = make_source(scenario, partition)
    model, skip = source.model, source.env.frame_skip
    datas = [mujoco.MjData(model) for _ in range(num_threads)]
    steps, num_envs, width = trace.states.shape
    controls = np.repeat(trace.controls[:, :, None], skip, axis=2)
    out = np.empty((num_envs, skip, width))
    with Rollout(nthread=num_threads) as rollout:

        def step(index: int) -> None:
            t = index % steps
            rollout.rollout(
                model,
                datas,
                trace.states[t],
                controls[t],
                initial_warmstart=trace.warmstarts[t],
                state=out,
            )

        return num_envs * _calls_per_second(step, steps, seconds)


def env_rate(
    scenario: str, partition: str, trace: Trace, num_threads: int, seconds: float = 2.0
) -> float:
    """Return environment steps per second, all environments together, on the same trace."""
    steps, num_envs = trace.actions.shape[:2]
    env = MaMuJoCo(num_envs, scenario, partition, num_threads=num_threads)

    def step(index: int) -> None:
        if index % steps == 0:
            env.reset(seed=0)
        env.step(trace.actions[index % steps])

    return num_envs * _calls_per_second(step, steps, seconds)


def _calls_per_second(step: Callable[[int], Any], steps: int, seconds: float) -> float:
    """Return the mean rate over whole traces, at least one, after a short warm-up."""
    for index in range(10):
        step(index)
    calls, began = 0, time.perf_counter()
    while calls % steps or time.perf_counter() - began < seconds:
        step(calls)
        calls += 1
    return calls / (time.perf_counter() - began)


def main() -> None:
    """Print a Markdown table of raw and environment rates, the median of interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-envs", type=int, default=64, help="environments")
    parser.add_argument("--threads", type=int, default=2, help="threads that step them")
    parser.add_argument("--repeats", type=int, default=5, help="alternating measurements")
    options = parser.parse_args()
    print(f"{options.num_envs} environments, {options.threads} threads, ", end="")
    print(f"MuJoCo {mujoco.__version__}\n")
    print("| task | raw mujoco.rollout, steps/s | environment, steps/s | share |")
    print("| --- | --- | --- | --- |")
    for task in TASKS:
        trace = record(*task, options.num_envs)
        rates = [
            (
                raw_physics_rate(*task, trace, options.threads),
                env_rate(*task, trace, options.threads),
            )
            for _ in range(options.repeats)
        ]
        raw, env = np.median(rates, axis=0)
        share = np.median([env / raw for raw, env in rates])
        print(f"| {'_'.join(task).lower()} | {raw:,.0f} | {env:,.0f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
