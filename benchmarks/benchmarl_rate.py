"""Measure the training throughput of BenchMARL's MAPPO on MaMuJoCo HalfCheetah 2x3.

With `--until 3000` it measures instead the CPU seconds, from the start of the interpreter, until
the mean return of the last `--episodes` finished episodes is that much, or `--steps` are done.

But for `--sampling ours` it imports nothing of this package, and it runs in an environment of its
own.

    python3.11 -m venv benchmarl-env
    benchmarl-env/bin/pip install -r benchmarks/requirements-benchmarl.txt
    benchmarl-env/bin/python benchmarks/benchmarl_rate.py --steps 20000 --sampling batched

`--sampling` says how the environments are advanced. `serial` is BenchMARL's default (one TorchRL
environment each, one after the other), `parallel` its other choice (one process each), and
`batched` one TorchRL environment that holds all of them, which is what BenchMARL expects of a
vectorised simulator; `ours` is that one with this package's environment in it. TorchRL's own
PettingZoo wrapper cannot be used: it fixes the keys of `info` at the reset, and MaMuJoCo returns
more of them at every step.

Axes: *batch is () for one copy or (E,) for all of them, N agents, O observation features,
S state features, A actions.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from benchmarl_team import OneTeam  # the file beside this one
from gymnasium_robotics import mamujoco_v1
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

Sampling = Literal["serial", "parallel", "batched", "ours"]
EPISODE_STEPS = 1000
FINISHED: deque[float] = deque()
"""Returns of the episodes that ended in this process, the latest last."""


class HalfCheetahEnv(EnvBase):
    """One or several copies of HalfCheetah 2x3 as a single TorchRL environment."""

    def __init__(self, num_envs: int | None, seed: int | None) -> None:
        """Make `num_envs` environments with a batch axis; for None one copy without that axis."""
        batch = torch.Size([] if num_envs is None else [num_envs])
        super().__init__(device=torch.device("cpu"), batch_size=batch)
        self.teams = [mamujoco_v1.parallel_env("HalfCheetah", "2x3") for _ in range(num_envs or 1)]
        first = self.teams[0]
        self.agents: list[str] = list(first.possible_agents)
        team = torch.Size([*batch, len(self.agents)])
        obs_size = first.observation_space(self.agents[0]).shape[0]
        action_size = first.action_space(self.agents[0]).shape[0]
        first.reset(seed=0)
        state = Unbounded(shape=(*batch, first.state().size))
        observation = Unbounded(shape=(*team, obs_size))
        action = Bounded(low=-1.0, high=1.0, shape=(*team, action_size), dtype=torch.float32)
        self.observation_spec = Composite(
            agents=Composite(observation=observation, shape=team), state=state, shape=batch
        )
        self.action_spec = Composite(agents=Composite(action=action, shape=team), shape=batch)
        self.reward_spec = Unbounded(shape=(*batch, 1))
        self._obs = np.zeros((len(self.teams), len(self.agents), obs_size), dtype=np.float32)
        self._state = np.zeros((len(self.teams), first.state().size), dtype=np.float32)
        self._seeds = np.random.default_rng(seed)
        self._returns = np.zeros(len(self.teams))

    def _set_seed(self, seed: int | None) -> None:
        self._seeds = np.random.default_rng(seed)

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        asked = None if tensordict is None else tensordict.get("_reset", None)
        which = np.ones(len(self.teams), bool) if asked is None else asked.reshape(-1).numpy()
        for index in np.flatnonzero(which):
            obs, _ = self.teams[index].reset(seed=int(self._seeds.integers(2**31)))
            self._store(index, obs)
        return self._observed()

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        E, N = len(self.teams), len(self.agents)
        actions = tensordict["agents", "action"].reshape(E, N, -1).numpy()
        rewards = np.zeros((E, 1), dtype=np.float32)
        terminated = np.zeros((E, 1), dtype=bool)
        truncated = np.zeros((E, 1), dtype=bool)
        lead = self.agents[0]
        for index, team in enumerate(self.teams):
            joint = dict(zip(self.agents, actions[index], strict=True))
            obs, reward, ended, cut, _ = team.step(joint)
            self._store(index, obs)
            rewards[index], terminated[index], truncated[index] = (
                reward[lead],
                ended[lead],
                cut[lead],
            )
            self._returns[index] += reward[lead]
            if ended[lead] or cut[lead]:
                FINISHED.append(float(self._returns[index]))
                self._returns[index] = 0.0
        outcome = self._observed()
        outcome["reward"] = torch.from_numpy(rewards).reshape(*self.batch_size, 1)
        outcome["terminated"] = torch.from_numpy(terminated).reshape(*self.batch_size, 1)
        outcome["done"] = torch.from_numpy(terminated | truncated).reshape(*self.batch_size, 1)
        return outcome

    def _store(self, index: int, obs: dict[str, np.ndarray]) -> None:
        for agent, name in enumerate(self.agents):
            self._obs[index, agent] = obs[name]
        self._state[index] = self.teams[index].state()

    def _observed(self) -> TensorDictBase:
        batch = self.batch_size
        observation = torch.from_numpy(self._obs.copy()).reshape(*batch, *self._obs.shape[1:])
        state = torch.from_numpy(self._state.copy()).reshape(*batch, -1)
        agents = TensorDict({"observation": observation}, [*batch, len(self.agents)])
        return TensorDict({"agents": agents, "state": state}, batch)


class OurHalfCheetahEnv(HalfCheetahEnv):
    """The same batch, advanced by this package's environment, which resets finished episodes."""

    def __init__(self, num_envs: int, seed: int | None) -> None:
        super().__init__(num_envs, seed)  # whose specs are these, too
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from envs import make_env

        self.batch = make_env("mamujoco/halfcheetah_2x3", num_envs, reward_mode="dense")
        self.current: Any = None

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        if self.current is None:
            self.current = self.batch.reset(seed=int(self._seeds.integers(2**31)))
        return self._shown(self.current.obs, self.current.state)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.current = step = self.batch.step(tensordict["agents", "action"].numpy())
        outcome = self._shown(step.final_obs, step.final_state)
        done = step.terminated | step.truncated
        outcome["reward"] = torch.tensor(step.rewards).unsqueeze(-1)
        outcome["terminated"] = torch.tensor(step.terminated).unsqueeze(-1)
        outcome["done"] = torch.tensor(done).unsqueeze(-1)
        return outcome

    def _shown(self, obs: np.ndarray, state: np.ndarray) -> TensorDictBase:
        agents = TensorDict({"observation": torch.tensor(obs)}, [*self.batch_size, obs.shape[1]])
        return TensorDict({"agents": agents, "state": torch.tensor(state)}, self.batch_size)


class HalfCheetahTask(OneTeam):
    """HalfCheetah 2x3."""

    continuous = True

    def get_env_fun(
        self, num_envs: int, continuous_actions: bool, seed: int | None, device: Any
    ) -> Callable[[], EnvBase]:
        """Return the maker of one batched environment, or of one copy for BenchMARL to repeat."""
        if self.config["sampling"] == "ours":
            return lambda: OurHalfCheetahEnv(num_envs, seed)
        batched = self.config["sampling"] == "batched"
        return lambda: HalfCheetahEnv(num_envs if batched else None, seed)

    def max_steps(self, env: EnvBase) -> int:
        return EPISODE_STEPS


class Solved(Exception):  # noqa: N818  # it is no error
    """Ends the training."""


class Stopwatch(Callback):
    """Notes when each training iteration ended, and the memory then held.

    It also restores the number of threads: TorchRL's parallel environment takes one away from the
    learner for each of its processes, which would leave the update a single thread.
    """

    def __init__(self, threads: int, iterations: int, goal: tuple[float, int] | None) -> None:
        """`goal` is a return and of how many episodes it is the mean."""
        super().__init__()
        self.goal = goal
        self.threads = threads
        self.iterations = iterations
        self.ends: list[float] = []
        self.peak_rss_mb = 0.0

    def on_batch_collected(self, batch: TensorDictBase) -> None:
        torch.set_num_threads(self.threads)

    def on_train_end(self, training_td: TensorDictBase, group: str) -> None:
        self.ends.append(time.perf_counter())
        if len(self.ends) < self.iterations:  # after the last one the processes are going away
            self.peak_rss_mb = peak_rss_mb()
        if self.goal is not None and len(FINISHED) >= self.goal[1]:
            level, count = self.goal
            if np.mean(list(FINISHED)[-count:]) >= level:
                raise Solved


def peak_rss_mb() -> float:
    """Return the peak resident memory in MiB, summed over this process and its children.

    Pages that processes share are counted once for each of them.
    """
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    kilobytes = 0
    for process in processes:
        status = Path(f"/proc/{process}/status").read_text()
        kilobytes += int(status.split("VmHWM:")[1].split()[0])
    return kilobytes / 1024


def experiment_config(arguments: argparse.Namespace, folder: str) -> ExperimentConfig:
    """Return BenchMARL's defaults with our sizes, and without evaluation, logs or checkpoints."""
    frames = arguments.num_envs * arguments.rollout
    config = ExperimentConfig.get_from_yaml()
    config.parallel_collection = arguments.sampling == "parallel"
    config.lr = 1e-3
    config.max_n_frames = arguments.steps + frames
    config.on_policy_collected_frames_per_batch = frames
    config.on_policy_n_envs_per_worker = arguments.num_envs
    config.on_policy_n_minibatch_iters = arguments.epochs
    config.on_policy_minibatch_size = frames // arguments.minibatches
    config.evaluation = False
    config.evaluation_episodes = 1
    config.render = False
    config.loggers = []
    config.create_json = False
    config.save_folder = folder
    return config


def measure(arguments: argparse.Namespace) -> dict[str, float | str | int]:
    """Return the rate over all iterations but the first, which warms up.

    `load_before` is the machine's load average before the start: the rate of a busy machine says
    nothing, because PyTorch's threads wait for each other.
    """
    load_before = os.getloadavg()[0]
    network = MlpConfig(
        num_cells=[arguments.hidden, arguments.hidden],
        layer_class=torch.nn.Linear,
        activation_class=torch.nn.Tanh,
    )
    frames = arguments.num_envs * arguments.rollout
    goal = None if arguments.until is None else (arguments.until, arguments.episodes)
    stopwatch = Stopwatch(arguments.threads, 1 + -(-arguments.steps // frames), goal)
    solved = False
    with tempfile.TemporaryDirectory() as folder:
        experiment = Experiment(
            task=HalfCheetahTask("halfcheetah_2x3", {"sampling": arguments.sampling}),
            algorithm_config=MappoConfig.get_from_yaml(),
            model_config=network,
            seed=arguments.seed,
            config=experiment_config(arguments, folder),
            callbacks=[stopwatch],
        )
        try:
            experiment.run()
        except Solved:
            solved = True
    if goal is not None:
        return {
            "solved": solved,
            "steps": len(stopwatch.ends) * frames,
            "cpu_seconds": round(time.process_time(), 2),
        }
    steps = (len(stopwatch.ends) - 1) * frames
    seconds = stopwatch.ends[-1] - stopwatch.ends[0]
    return {
        "library": "benchmarl",
        "sampling": arguments.sampling,
        "threads": arguments.threads,
        "num_envs": arguments.num_envs,
        "steps": steps,
        "seconds": round(seconds, 2),
        "steps_per_second": round(steps / seconds, 1),
        "peak_rss_mb": round(stopwatch.peak_rss_mb, 1),
        "load_before": round(load_before, 2),
    }


def parse_arguments() -> argparse.Namespace:
    """Return the command line; the defaults are the settings our own trainer is measured with."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000, help="timed steps, after the warm-up")
    parser.add_argument("--sampling", choices=get_args(Sampling), default="serial")
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's threads in the learner")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--minibatches", type=int, default=4)
    parser.add_argument("--rollout", type=int, default=125, help="steps per copy and iteration")
    parser.add_argument("--hidden", type=int, default=64, help="width of the two hidden layers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=float, help="return at which the task is solved")
    parser.add_argument("--episodes", type=int, default=32, help="finished last, with that mean")
    return parser.parse_args()


def main() -> None:
    """Measure once and print one JSON line."""
    arguments = parse_arguments()
    # BenchMARL warns in every iteration in which no 1,000-step episode ends.
    warnings.filterwarnings("ignore", message="No episode terminated")
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments)), flush=True)


if __name__ == "__main__":
    main()
