"""Train BenchMARL's QMIX on the discrete tasks of the learning benchmark: a reference from outside.

Imports the environments of this package and nothing else of it, and runs beside BenchMARL:

    python3.11 -m venv benchmarl-env
    benchmarl-env/bin/pip install -r benchmarks/requirements-benchmarl.txt
    PYTHONPATH=. benchmarl-env/bin/python benchmarks/qmix.py --tasks nav_6 3m_episodic

QMIX (Rashid et al., 2018, arXiv 1803.11485) sees what every other algorithm sees: the sparse task
reward. Networks are 2 x 64 tanh and shared, the discount is the task's, the mixer reads the
state; the rest is BenchMARL's default but for what `SETTINGS` names. Choose `--lr` on other seeds
than those that are reported. A cell is one task and one seed; given again, the command goes on
with those that are missing. Axes: E environments, N agents.
"""

import argparse
import json
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarl.algorithms import QmixConfig
from benchmarl.environments.common import TaskClass
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs import EnvStep, HasHiddenRewards, VecEnv, make_env

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "learning" / "cells"
SETTINGS: dict[str, Any] = {
    "lr": 5e-5,
    "off_policy_collected_frames_per_batch": 2_000,
    "off_policy_n_optimizer_steps": 200,
    "off_policy_train_batch_size": 128,
    "off_policy_memory_size": 100_000,
}
"""One optimizer step for ten steps of the environments."""
EVALUATED = 64
"""Episodes played greedily at the end."""


class Copies(EnvBase):
    """E environments of this package as one environment of TorchRL's.

    Ours begin the next episode by themselves; TorchRL asks for that with `_reset`, and is then
    given what it would have seen.
    """

    def __init__(self, env: VecEnv, seed: int) -> None:
        spec = env.spec
        batch = torch.Size([spec.num_envs])
        super().__init__(device=torch.device("cpu"), batch_size=batch)
        self.env, self.seed = env, seed
        self.finished: list[tuple[float, float]] = []
        """True return and success of every episode that ended."""
        self._sums = np.zeros(spec.num_envs)
        self._step_of: EnvStep | None = None
        team = torch.Size([*batch, spec.num_agents])
        seen = {"observation": Unbounded(shape=(*team, spec.obs_size))}
        mask = Categorical(2, shape=(*team, spec.action_size), dtype=torch.bool)
        if spec.masks_actions:
            seen["action_mask"] = mask
        self.observation_spec = Composite(
            agents=Composite(seen, shape=team),
            state=Unbounded(shape=(*batch, spec.state_size)),
            shape=batch,
        )
        action = Categorical(spec.action_size, shape=team, dtype=torch.int64)
        self.action_spec = Composite(agents=Composite(action=action, shape=team), shape=batch)
        self.reward_spec = Unbounded(shape=(*batch, 1))

    def _set_seed(self, seed: int | None) -> None:
        self.seed = self.seed if seed is None else seed

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        if self._step_of is None:
            self._step_of = self.env.reset(self.seed)
        step = self._step_of
        return self._seen(step.obs, step.state, step.action_mask)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        step = self._step_of = self.env.step(tensordict["agents", "action"].numpy())
        self._count(step)
        done = step.terminated | step.truncated
        mask = step.action_mask
        if mask is not None:  # nobody chooses after the end, but every agent needs a legal action
            mask = mask | done[:, None, None]
        outcome = self._seen(step.final_obs, step.final_state, mask)
        outcome["reward"] = torch.from_numpy(step.rewards.astype(np.float32))[:, None]
        outcome["terminated"] = torch.from_numpy(step.terminated.copy())[:, None]
        outcome["done"] = torch.from_numpy(done.copy())[:, None]
        return outcome

    def _count(self, step: EnvStep) -> None:
        """Note the true returns, and the first success among the facts, of what has ended."""
        hidden = isinstance(self.env, HasHiddenRewards)
        self._sums += self.env.hidden_rewards() if hidden else step.rewards
        spec = self.env.spec
        for copy in np.flatnonzero(step.terminated | step.truncated):
            success = np.nan
            if step.facts is not None and spec.successes:
                names = [fact.name for fact in spec.facts]
                success = float(step.facts[copy, names.index(spec.successes[0])])
            self.finished.append((float(self._sums[copy]), success))
            self._sums[copy] = 0.0

    def _seen(self, obs: Any, state: Any, mask: Any) -> TensorDictBase:
        """Return what the agents observe, copied."""
        batch = list(self.batch_size)
        agents = {"observation": torch.from_numpy(np.array(obs, np.float32))}
        if mask is not None:
            agents["action_mask"] = torch.from_numpy(np.array(mask))
        team = TensorDict(agents, [*batch, self.env.spec.num_agents])
        return TensorDict({"agents": team, "state": torch.from_numpy(np.array(state))}, batch)


class OneTeam(TaskClass):
    """A task as BenchMARL wants it described: one group of agents, and a state."""

    def get_env_fun(
        self, num_envs: int, continuous_actions: bool, seed: int | None, device: Any
    ) -> Callable[[], EnvBase]:
        """Return the maker of all environments; each is kept to be read after training."""
        made: list[Copies] = self.config["made"]

        def make() -> EnvBase:
            env = make_env(self.config["env"], num_envs, **self.config["options"])
            made.append(Copies(env, self.config["seed"] + 1000 * len(made)))
            return made[-1]

        return make

    def supports_continuous_actions(self) -> bool:
        return False

    def supports_discrete_actions(self) -> bool:
        return True

    def max_steps(self, env: EnvBase) -> int:
        return int(env.env.spec.max_steps)

    def has_render(self, env: EnvBase) -> bool:
        return False

    def group_map(self, env: EnvBase) -> dict[str, list[str]]:
        return {"agents": [f"agent_{index}" for index in range(env.env.spec.num_agents)]}

    def observation_spec(self, env: EnvBase) -> Composite:
        agents = env.observation_spec_unbatched["agents"].clone()
        if env.env.spec.masks_actions:
            del agents["action_mask"]
        return Composite(agents=agents)

    def info_spec(self, env: EnvBase) -> None:
        return None

    def state_spec(self, env: EnvBase) -> Composite:
        return Composite(state=env.observation_spec_unbatched["state"].clone())

    def action_spec(self, env: EnvBase) -> Composite:
        return env.full_action_spec_unbatched

    def action_mask_spec(self, env: EnvBase) -> Composite | None:
        if not env.env.spec.masks_actions:
            return None
        agents = env.observation_spec_unbatched["agents"].clone()
        del agents["observation"]
        return Composite(agents=agents)

    @staticmethod
    def env_name() -> str:
        return "marl"


def trained(task: dict[str, Any], seed: int, lr: float) -> dict[str, Any]:
    """Return the cell of one task and seed, in the form of `benchmarks.learning`."""
    begin = time.perf_counter()
    settings = tomllib.loads((ROOT / task["config"]).read_text())
    entry = settings["env"] | {
        key.removeprefix("env."): value
        for key, value in task.get("overrides", {}).items()
        if key.startswith("env.")
    }
    made: list[Copies] = []
    given = {"env": entry["name"], "options": entry.get("options", {}), "seed": seed, "made": made}
    config = ExperimentConfig.get_from_yaml()
    for name, value in (SETTINGS | {"lr": lr}).items():
        setattr(config, name, value)
    config.off_policy_n_envs_per_worker = entry["num_envs"]
    config.gamma = settings.get("learner", {}).get("gamma", config.gamma)
    config.max_n_frames = task["steps"]
    config.evaluation = config.render = config.create_json = False
    config.loggers = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = folder
        experiment = Experiment(
            task=OneTeam(entry["name"].replace("/", "_"), given),
            algorithm_config=QmixConfig.get_from_yaml(),
            model_config=MlpConfig(
                num_cells=[64, 64], layer_class=torch.nn.Linear, activation_class=torch.nn.Tanh
            ),
            seed=seed,
            config=config,
        )
        experiment.run()
    column = 1 if task.get("measure") == "episode/won" else 0
    training = max(made, key=lambda copies: len(copies.finished)).finished
    late = np.array(training[-max(len(training) // 10, 1) :])
    return {
        "task": task["name"],
        "algorithm": "qmix",
        "seed": seed,
        "steps": task["steps"],
        "seconds": round(time.perf_counter() - begin, 1),
        "settings": SETTINGS | {"lr": lr},
        "final": float(late[:, column].mean()),
        "evaluation": {"greedy": played(experiment, given, seed)[column]},
        "episodes": len(training),
    }


def played(experiment: Experiment, given: dict[str, Any], seed: int) -> tuple[float, float]:
    """Return the mean return and success of whole episodes, played greedily."""
    copies = Copies(make_env(given["env"], EVALUATED, **given["options"]), 10_000 + seed)
    steps = copies.env.spec.max_steps
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        copies.rollout(steps, experiment.policy, auto_reset=True, break_when_any_done=False)
    first = np.array(copies.finished[:EVALUATED])
    return float(first[:, 0].mean()), float(first[:, 1].mean())


def main() -> None:
    """Train the missing cells, one after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    tasks_file = ROOT / "benchmarks" / "tasks.toml"
    parser.add_argument("--tasks-file", type=Path, default=tasks_file)
    parser.add_argument("--tasks", nargs="+", required=True, help="names in the tasks file")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the tasks file")
    parser.add_argument("--steps", type=int, help="instead of those of the tasks file")
    parser.add_argument("--lr", type=float, default=SETTINGS["lr"], help="of the networks")
    parser.add_argument("--cells", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    entries = tomllib.loads(options.tasks_file.read_text())
    for name in options.tasks:
        if name not in entries or name == "algorithms":
            known = ", ".join(entry for entry in entries if entry != "algorithms")
            parser.error(f"--tasks: there is no {name!r} in {options.tasks_file}; it has {known}")
        task = entries[name] | {"name": name}
        task["steps"] = options.steps or task["steps"]
        for seed in options.seeds or task["seeds"]:
            path = options.cells / name / "qmix" / f"seed_{seed}.json"
            if path.exists():
                continue
            cell = trained(task, seed, options.lr)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(cell, indent=1) + "\n")
            print(f"{name}, seed {seed}: {cell['final']:.3f}, {cell['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
