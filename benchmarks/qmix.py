"""Train BenchMARL's QMIX on discrete tasks of the reference benchmark: a reference from outside.

Imports the environments of this package and nothing else of it, and runs beside BenchMARL:

    python3.11 -m venv benchmarl-env
    benchmarl-env/bin/pip install -r benchmarks/requirements-benchmarl.txt
    PYTHONPATH=. benchmarl-env/bin/python benchmarks/qmix.py --tasks nav_6 3m_episodic

QMIX (Rashid et al., 2018, arXiv 1803.11485) sees what every other algorithm sees: the sparse task
reward. Networks are 2 x 64 tanh and shared, the discount is the task's, the mixer reads the
state; the rest is BenchMARL's default but for what `SETTINGS` names. Every run is kept as a group
`qmix` beside those of `marl sweep`; given again, the command goes on with those that are missing.
Axes: E environments, N agents.
"""

import argparse
import json
import tempfile
import time
import tomllib
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarl.algorithms import QmixConfig
from benchmarl.experiment import Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig
from benchmarl_team import OneTeam  # the file beside this one
from tensordict import TensorDict, TensorDictBase
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type

from envs import EnvStep, HasHiddenRewards, VecEnv, make_env

STUDIES = Path(__file__).resolve().parent / "studies"
RESULTS = STUDIES.parent / "results" / "reference"
SETTINGS: dict[str, Any] = {
    "lr": 5e-4,
    "off_policy_collected_frames_per_batch": 2_000,
    "off_policy_n_optimizer_steps": 200,
    "off_policy_train_batch_size": 128,
    "off_policy_memory_size": 100_000,
}
"""One optimizer step for ten steps of the environments. The step size was chosen at seed 100 of
nav_6: -30.2 in the last tenth; with BenchMARL's default of 5e-5 -37.3; with 2e-3 it had come to -58
when it was stopped in the middle."""
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
        self.finished: list[tuple[int, float, float]] = []
        """Step, true return and success of every episode that ended."""
        self._steps = 0
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
        self._steps += self.env.spec.num_envs
        hidden = isinstance(self.env, HasHiddenRewards)
        self._sums += self.env.hidden_rewards() if hidden else step.rewards
        spec = self.env.spec
        for copy in np.flatnonzero(step.terminated | step.truncated):
            success = np.nan
            if step.facts is not None and spec.successes:
                names = [fact.name for fact in spec.facts]
                success = float(step.facts[copy, names.index(spec.successes[0])])
            self.finished.append((self._steps, float(self._sums[copy]), success))
            self._sums[copy] = 0.0

    def _seen(self, obs: Any, state: Any, mask: Any) -> TensorDictBase:
        """Return what the agents observe, copied."""
        batch = list(self.batch_size)
        agents = {"observation": torch.from_numpy(np.array(obs, np.float32))}
        if mask is not None:
            agents["action_mask"] = torch.from_numpy(np.array(mask))
        team = TensorDict(agents, [*batch, self.env.spec.num_agents])
        return TensorDict({"agents": team, "state": torch.from_numpy(np.array(state))}, batch)


class OurTask(OneTeam):
    """An environment of this package."""

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

    def max_steps(self, env: EnvBase) -> int:
        return int(env.env.spec.max_steps)


def trained(name: str, task: dict[str, Any], seed: int, lr: float) -> dict[str, Any]:
    """Return what is kept of one task and seed, as `marl.reports.kept` reads it."""
    begin = time.perf_counter()
    settings = tomllib.loads((STUDIES / task["config"]).read_text())
    env = settings["env"] | task.get("env", {})
    env["options"] = settings["env"].get("options", {}) | task.get("env", {}).get("options", {})
    made: list[Copies] = []
    given = {"env": env["name"], "options": env["options"], "seed": seed, "made": made}
    config = ExperimentConfig.get_from_yaml()
    for key, value in (SETTINGS | {"lr": lr}).items():
        setattr(config, key, value)
    config.off_policy_n_envs_per_worker = env["num_envs"]
    config.gamma = settings.get("learner", {}).get("gamma", config.gamma)
    config.max_n_frames = task["total_steps"]
    config.evaluation = config.render = config.create_json = False
    config.loggers = []
    with tempfile.TemporaryDirectory() as folder:
        config.save_folder = folder
        experiment = Experiment(
            task=OurTask(env["name"].replace("/", "_"), given),
            algorithm_config=QmixConfig.get_from_yaml(),
            model_config=MlpConfig(
                num_cells=[64, 64], layer_class=torch.nn.Linear, activation_class=torch.nn.Tanh
            ),
            seed=seed,
            config=config,
        )
        experiment.run()
    metric = task.get("metric", "return/mean")
    column = 2 if metric == "episode/won" else 1
    training = max(made, key=lambda copies: len(copies.finished)).finished
    ended = np.array(training)
    steps = task["total_steps"]
    part = np.ceil(ended[:, 0] * (100 / steps)).astype(int)
    curve = [
        [int(inside[-1, 0]), float(inside[:, column].mean()), len(inside)]
        for inside in (ended[part == number] for number in np.unique(part))
    ]
    late = ended[ended[:, 0] > 0.9 * steps, column]
    told = "_won" if column == 2 else ""
    return {
        "kept": 1,
        "task": name,
        "group": "qmix",
        "seed": seed,
        "metric": metric,
        "final": float(late.mean()) if len(late) else None,
        "steps": curve[-1][0],
        "total_steps": steps,
        "commit": f"BenchMARL {version('benchmarl')}",
        "machine": f"torch {torch.__version__}",
        "seconds": {"total": round(time.perf_counter() - begin, 1)},
        "settings": SETTINGS | {"lr": lr},
        "numbers": {f"evaluation/greedy{told}": played(experiment, given, seed)[column - 1]},
        "curve": curve,
    }


def played(experiment: Experiment, given: dict[str, Any], seed: int) -> tuple[float, float]:
    """Return the mean return and success of whole episodes, played greedily."""
    copies = Copies(make_env(given["env"], EVALUATED, **given["options"]), 10_000 + seed)
    steps = copies.env.spec.max_steps
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC):
        copies.rollout(steps, experiment.policy, auto_reset=True, break_when_any_done=False)
    first = np.array(copies.finished[:EVALUATED])
    return float(first[:, 1].mean()), float(first[:, 2].mean())


def main() -> None:
    """Train what is missing, one run after the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", type=Path, default=STUDIES / "reference.toml")
    parser.add_argument("--tasks", nargs="+", required=True, help="names in the study")
    parser.add_argument("--seeds", nargs="+", type=int, help="instead of those of the study")
    parser.add_argument("--steps", type=int, help="instead of those of the study")
    parser.add_argument("--lr", type=float, default=SETTINGS["lr"], help="of the networks")
    parser.add_argument("--keep", type=Path, default=RESULTS, help="folder of results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    study = tomllib.loads(options.study.read_text())
    for name in options.tasks:
        if name not in study["tasks"]:
            known = ", ".join(study["tasks"])
            parser.error(f"--tasks: there is no {name!r} in {options.study}; it has {known}")
        task = study["tasks"][name]
        task["total_steps"] = options.steps or task["total_steps"]
        for seed in options.seeds or task.get("seeds", study["seeds"]):
            path = options.keep / name / "qmix" / f"seed_{seed}.json"
            if path.exists():
                continue
            run = trained(name, task, seed, options.lr)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(run) + "\n")
            print(f"{name}, seed {seed}: {run['final']}, {run['seconds']['total']} s", flush=True)


if __name__ == "__main__":
    main()
