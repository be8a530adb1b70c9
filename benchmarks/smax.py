"""How much of SMAX's own speed the adapter keeps.

The raw rate is JaxMARL alone: `HeuristicEnemySMAX.step`, mapped over the environments and compiled,
its state donated, stepping the same battles under the same actions. It restarts battles that end
as the adapter does, and gives no masks, facts or final observations. Run it with::

    python -m benchmarks.smax --num-envs 1024
"""

import argparse
import time
from importlib.metadata import version
from typing import Any

import jax
import numpy as np
import numpy.typing as npt

from envs.jaxmarl.smax import Smax, import_smax
from envs.rng import env_seeds, random_actions
from marl.utils.origin import commit, machine

SCENARIOS = ("3m", "2s3z", "smacv2_5_units")


def record(env: Smax, steps: int) -> npt.NDArray[np.int32]:
    """Return (T, E, N) random legal actions from a fresh start."""
    draw = np.random.default_rng(0)
    mask, trace = env.reset(seed=0).action_mask, []
    for _ in range(steps):
        trace.append(random_actions(env.spec, draw, mask).astype(np.int32))
        mask = env.step(trace[-1]).action_mask
    return np.stack(trace)


class RawSmax:
    """JaxMARL's own environment, compiled over a batch of keys as the adapter draws them."""

    def __init__(self, scenario: str, num_envs: int) -> None:
        smax = import_smax()
        self._env = smax.HeuristicEnemySMAX(scenario=smax.map_name_to_scenario(scenario))
        self._num_envs = num_envs
        self._begin = jax.jit(self._begin_all)
        self._advance = jax.jit(self._advance_all, donate_argnums=(0, 1))
        self._keys: Any = None
        self._battles: Any = None

    def _begin_all(self, keys: jax.Array) -> Any:
        keys, resets = jax.vmap(jax.random.split, out_axes=1)(keys)
        return keys, jax.vmap(self._env.reset)(resets)[1]

    def _advance_all(self, keys: jax.Array, battles: Any, actions: jax.Array) -> Any:
        keys, steps = jax.vmap(jax.random.split, out_axes=1)(keys)
        joint = {agent: actions[:, index] for index, agent in enumerate(self._env.agents)}
        obs, battles, rewards, dones, _ = jax.vmap(self._env.step)(steps, battles, joint)
        return keys, battles, (obs, rewards, dones)

    def reset(self, seed: int) -> None:
        """Begin all battles."""
        words = env_seeds(seed, self._num_envs).view(np.uint32).reshape(-1, 2)
        self._keys, self._battles = self._begin(jax.random.wrap_key_data(words))

    def step(self, actions: npt.NDArray[np.int32]) -> Any:
        """Advance all battles and wait for them."""
        self._keys, self._battles, shown = self._advance(self._keys, self._battles, actions)
        return jax.block_until_ready(shown)


def rates(env: Smax | RawSmax, trace: npt.NDArray[np.int32]) -> tuple[float, float]:
    """Return environment steps, all environments together, per second and per second of CPU time.

    Other programs on the machine change the first, hardly the second, which counts all threads.
    """
    env.reset(seed=0)
    began, worked = time.perf_counter(), time.process_time()
    for actions in trace:
        env.step(actions)
    steps = trace.shape[0] * trace.shape[1]
    return steps / (time.perf_counter() - began), steps / (time.process_time() - worked)


def main() -> None:
    """Print a Markdown table of raw and adapted rates, the median of interleaved runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-envs", type=int, default=1024, help="battles stepped together")
    parser.add_argument("--steps", type=int, default=100, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="alternating measurements")
    options = parser.parse_args()
    command = f"python -m benchmarks.smax --num-envs {options.num_envs} --steps {options.steps}"
    print("# SMAX: the adapter beside JaxMARL alone\n")
    print(f"`{command} --repeats {options.repeats}`")
    print(f"at commit {commit()} on {machine()}, JAX {jax.__version__},")
    print(f"JaxMARL {version('jaxmarl')}; medians of alternating runs.\n")
    print("| scenario | JaxMARL, steps/s | adapter, steps/s | share | share by CPU time |")
    print("| --- | --- | --- | --- | --- |")
    for scenario in SCENARIOS:
        env, raw = Smax(options.num_envs, scenario), RawSmax(scenario, options.num_envs)
        trace = record(env, options.steps)
        rates(raw, trace[:3])
        pairs = [(rates(raw, trace), rates(env, trace)) for _ in range(options.repeats)]
        alone, adapted = np.swapaxes(pairs, 0, 1)
        (speed, _), (ours, _) = np.median(alone, axis=0), np.median(adapted, axis=0)
        share, cpu_share = np.median(adapted / alone, axis=0)
        row = f"{scenario} | {speed:,.0f} | {ours:,.0f} | {share:.0%} | {cpu_share:.0%}"
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
