"""The algorithm, line by line.

Axes: T time, E environments, N agents.
"""

import time
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs import make_env
from marl import __version__
from marl.checkpoint import CheckpointError, list_checkpoints, load_checkpoint, save_checkpoint
from marl.config import Config, ConfigError, config_from_dict, save_config, to_dict
from marl.mappo import Mappo
from marl.metrics import MetricWriter
from marl.normalisers import TeamNorm
from marl.numerics import correlation
from marl.plots import plot_run
from marl.preferences import PreferenceSource
from marl.rewards import make_reward_learner
from marl.rollout import Collector
from marl.seeding import Seeds
from marl.types import Rewards, Rollout, Transitions


class Trainer:
    """Everything that changes during a run, and one iteration of it."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(1)  # small matrices: threads run side by side, not inside one product
        self.config = config
        self.device = torch.device(config.device)
        self.seeds = Seeds(config.seed)
        self.env = make_env(config.env.name, config.env.num_envs, **env_options(config))
        spec = self.env.spec
        self.iteration = 0
        self.norm = TeamNorm(spec, enabled=config.network.normalise_inputs).to(self.device)
        self.collector = Collector(
            self.env,
            self.norm,
            config.learner.rollout_steps,
            seed=self.seeds.integer("environment"),
            generator=self.seeds.torch("actions", self.device),
            device=self.device,
            hidden=config.algorithm == "dense" or config.diagnose_hidden,
        )
        self.mappo = Mappo(
            spec,
            config.network,
            config.learner,
            self.norm,
            local_stream=config.learns_reward and config.is_factored,
            threads=config.threads,
            generator=self.seeds.torch("learner", self.device),
            device=self.device,
        )
        self.source: PreferenceSource | None = None
        if config.learns_reward:
            self.source = PreferenceSource(
                spec,
                config.learner.rollout_steps,
                config.preferences,
                config.reward,
                self.seeds.torch("preferences", self.device),
                self.device,
            )
            self.reward = make_reward_learner(
                spec, config, self.norm, self.seeds.torch("reward"), self.device
            )

    @property
    def steps(self) -> int:
        """Environment steps taken, summed over copies."""
        return self.iteration * self.config.batch_steps

    def iterate(self) -> dict[str, float]:
        """Run one iteration of the algorithm and return its metrics."""
        started = time.perf_counter()
        remaining = 1.0 - self.iteration / self.config.num_iterations

        rollout, hidden = self.collector.collect(self.mappo.actor)
        collected = time.perf_counter()

        rewards, metrics = self.task_or_learned_rewards(rollout, hidden)
        rewarded = time.perf_counter()

        if rewards is not None:
            metrics |= self.mappo.update(rollout, rewards, remaining)
        self.norm.update(rollout.transitions)
        self.iteration += 1
        updated = time.perf_counter()

        if self.config.diagnose_hidden and hidden is not None and rewards is not None:
            metrics["benchmark/reward_correlation"] = float(correlation(rewards.team, hidden))
        return (
            {"steps": float(self.steps)}
            | episode_metrics(rollout)
            | metrics
            | self._time_split(started, collected, rewarded, updated)
        )

    def task_or_learned_rewards(
        self, rollout: Rollout, hidden: Tensor | None
    ) -> tuple[Rewards | None, dict[str, float]]:
        """Return what the policy is to maximise on this rollout; None while nothing is known.

        The hidden reward reaches the oracle and nothing else.
        """
        if self.config.algorithm == "dense" and hidden is not None:
            return Rewards(team=hidden), {}
        if self.source is None:
            return Rewards(team=rollout.task_rewards), {}

        self.source.observe(rollout)
        metrics = self.reward.fit(self.source, self.policy)
        metrics |= self.source.metrics()
        if not self.reward.is_fitted:
            return None, metrics
        rewards, reward_metrics = self.reward.rewards(rollout.transitions)
        return rewards, metrics | reward_metrics

    @torch.no_grad()
    def policy(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return actions of the current policy at some transitions, and their log-probabilities."""
        actor = self.mappo.actor
        parameters = actor(self.norm.obs(transitions.obs))
        noise = actor.noise(transitions.terminated.shape, self.seeds.torch("soft", self.device))
        actions = actor.sample(parameters, noise, transitions.action_mask)
        return actions, actor.log_prob(parameters, actions, transitions.action_mask)

    def _time_split(
        self, started: float, collected: float, rewarded: float, updated: float
    ) -> dict[str, float]:
        """Return the seconds this iteration spent in each part."""
        collecting = self.collector.take_seconds()
        return {f"time/{name}": seconds for name, seconds in collecting.items()} | {
            "time/reward": rewarded - collected,
            "time/policy": updated - rewarded,
            "time/other": max(0.0, collected - started - sum(collecting.values())),
            "time/steps_per_second": self.config.batch_steps / (updated - started),
            "memory/resident_mib": resident_mib(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        state = {
            "iteration": self.iteration,
            "seeds": self.seeds.state_dict(),
            "norm": self.norm.state_dict(),
            "collector": self.collector.state_dict(),
            "mappo": self.mappo.state_dict(),
        }
        if self.source is not None:
            state |= {"source": self.source.state_dict(), "reward": self.reward.state_dict()}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a trainer with the same configuration."""
        self.iteration = state["iteration"]
        self.seeds.load_state_dict(state["seeds"])
        self.norm.load_state_dict(state["norm"])
        self.collector.load_state_dict(state["collector"])
        self.mappo.load_state_dict(state["mappo"])
        if self.source is not None:
            self.source.load_state_dict(state["source"])
            self.reward.load_state_dict(state["reward"])


def train(
    config: Config, run_dir: Path | str | None = None, *, resume: bool = False
) -> Generator[dict[str, float], None, None]:
    """Yield one metrics dict per iteration; with `run_dir`, also write it, and checkpoints.

    Closing the generator, an error in the run and the last iteration all save the state.
    """
    trainer = Trainer(config)
    if run_dir is None:
        while trainer.iteration < config.num_iterations:
            yield trainer.iterate()
        return
    folder = Path(run_dir)
    if not resume:
        new_run_folder(folder, config)
    elif list_checkpoints(folder / "checkpoints"):
        saved = load_checkpoint(folder / "checkpoints")[1]
        check_same_config(config, saved["config"], folder)
        trainer.load_state_dict(saved["trainer"])
    else:
        warnings.warn(
            f"{folder} was killed before its first checkpoint; starting over", stacklevel=2
        )
    yield from _train_in(folder, trainer, resume)


def _train_in(
    folder: Path, trainer: Trainer, resume: bool
) -> Generator[dict[str, float], None, None]:
    """Yield the metrics of a run that is recorded in `folder`."""
    config = trainer.config
    writer = MetricWriter(folder)
    if resume:
        writer.truncate(trainer.steps)
    saved_at = trainer.steps if resume else -1

    def save() -> None:
        nonlocal saved_at
        if saved_at != trainer.steps:
            save_trainer(trainer, folder / "checkpoints")
            saved_at = trainer.steps

    try:
        while trainer.iteration < config.num_iterations:
            metrics = trainer.iterate()
            writer.write(trainer.steps, metrics)
            if trainer.steps // config.checkpoint_every > max(saved_at, 0) // (
                config.checkpoint_every
            ):
                save()
            yield metrics
        save()
    except GeneratorExit:
        save()
        raise
    except CheckpointError:
        raise
    except Exception as error:
        crash = save_trainer(trainer, folder / "crash")
        error.add_note(f"the state at the error is in {crash}; checkpoints/ is as it was before")
        raise
    finally:
        writer.close()
        if trainer.iteration:
            plot_run(folder)


def save_trainer(trainer: Trainer, folder: Path) -> Path:
    """Write a checkpoint of a trainer, with the settings it belongs to."""
    state = {
        "version": __version__,
        "config": to_dict(trainer.config),
        "trainer": trainer.state_dict(),
    }
    return save_checkpoint(folder, trainer.steps, state, trainer.config.keep_checkpoints)


def new_run_folder(folder: Path, config: Config) -> None:
    """Create a run folder with its settings; refuse one that holds a run."""
    if (folder / "config.toml").exists():
        raise ConfigError(
            f"{folder} already holds a run; continue it with `marl resume {folder}` or choose "
            "another --run-dir"
        )
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.toml")


def check_same_config(config: Config, saved: dict[str, Any], folder: Path) -> None:
    """Raise `ConfigError` naming the settings in which a checkpoint differs from a run."""
    before, now = flat(to_dict(config_from_dict(saved, str(folder)))), flat(to_dict(config))
    changed = sorted(k for k in before | now if before.get(k) != now.get(k))
    if changed:
        raise ConfigError(
            f"{folder}: the checkpoint belongs to another configuration; it differs in "
            + ", ".join(f"{k} ({before.get(k)!r} there, {now.get(k)!r} here)" for k in changed)
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings under dotted keys."""
    items: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            items |= flat(value, f"{prefix}{key}.")
        else:
            items[f"{prefix}{key}"] = value
    return items


def env_options(config: Config) -> dict[str, Any]:
    """Return the environment's keyword arguments, with the run's threads where it takes them."""
    options: dict[str, Any] = dict(config.env.options)
    if config.env.name.startswith(("mamujoco/", "fleet/")):
        options.setdefault("num_threads", config.threads)
    return options


def episode_metrics(rollout: Rollout) -> dict[str, float]:
    """Return the mean return and length of the episodes that ended; NaN if none did."""
    episodes = rollout.episodes
    return {
        "return/mean": float(episodes.returns.mean()),
        "return/episodes": float(len(episodes.returns)),
        "return/length": float(episodes.lengths.to(torch.float32).mean()),
    }


def resident_mib() -> float:
    """Return the process's resident memory in MiB; NaN where the system does not tell."""
    status = Path("/proc/self/statm")
    if not status.exists():
        return float("nan")
    return int(status.read_text().split()[1]) * 4096 / 2**20
