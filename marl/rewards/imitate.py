"""A policy that imitates demonstrations (`marl imitate`), without an environment."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError, EnvConfig, NetworkConfig, RewardConfig
from marl.config.io import load_config
from marl.nn.normalisation import team_norm
from marl.policy import config_in, spec_in
from marl.preferences.buffer import SavedFeedback
from marl.preferences.dataset import (
    DatasetEnvironment,
    EpisodeArchive,
    EpisodeRecord,
    PreferenceDataset,
)
from marl.preferences.dataset.export import record_of
from marl.rewards import make_reward_learner
from marl.rewards.budget import never
from marl.rewards.cloning import (
    Objective,
    StepDraws,
    check_playable,
    cloning_loss,
    divergence_loss,
    fit_steps,
    mean_entropy,
)
from marl.rewards.fit_policy import (
    CLONED,
    UNIFORM,
    PolicyReport,
    progress_bar,
    start_policy,
    update_norm,
)
from marl.rewards.io import write_fit
from marl.rewards.ratio import PolicyRatio
from marl.utils.checkpoint import load_saved
from marl.utils.files import whole_folder
from marl.utils.seeding import Seeds

_OTHER_FOLDER = "choose another --out"
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The episodes that are imitated."""

    archive: EpisodeArchive
    numbers: Tensor
    """(M,) those to imitate."""
    are_marked: bool
    """Whether the dataset marks them as demonstrations; otherwise they are all that it has."""
    spec: EnvSpec
    environment: DatasetEnvironment


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """What `imitate` found."""

    data: str
    environment: str
    objective: str
    seed: int
    episodes: int
    """Episodes that were imitated, the held-out ones among them."""
    held_out: int
    are_marked: bool
    """Whether these are the dataset's demonstrations; otherwise they are all of its episodes."""
    policy: PolicyReport
    folder: Path | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as ``report.json`` holds them."""
        flat = {k: v for k, v in vars(self).items() if k not in ("policy", "folder")}
        return flat | {"policy": self.policy.to_json()}


def imitate(
    data: PreferenceDataset | Path | str,
    *,
    objective: Objective = "nll",
    reference: str = UNIFORM,
    steps: int = 1000,
    learning_rate: float = 1e-4,
    seed: int = 0,
    out: Path | str | None = None,
    reward: RewardConfig | None = None,
    network: NetworkConfig | None = None,
    holdout_every: int = 8,
    console: Console | None = None,
    stop: Callable[[], bool] = never,
) -> Imitation:
    """Fit a policy to the demonstrations of a dataset, or to the episodes that a run keeps.

    Where a dataset marks no episode as a demonstration, all are imitated. The policy starts as a
    new one (``uniform``) or as that of the run or fit `reference`, against which chi2 and hellinger
    measure (`marl.rewards.cloning`); nll is behaviour cloning. Every `holdout_every`-th episode
    measures only, and the policy of the lowest loss there is kept; of fewer episodes none does, and
    all steps are taken. `out` is a folder that `marl.load` plays. Once `stop` returns True no
    further gradient step is taken, and the policy of the lowest loss so far is kept.
    """
    _check_options(objective, reference, steps, holdout_every)
    folder = None if out is None else Path(out)
    with nullcontext() if folder is None else whole_folder(folder, _OTHER_FOLDER) as partial:
        shown = shown_in(data, console)
        archive, spec, seeds = shown.archive, shown.spec, Seeds(seed)
        check_playable(archive, spec, str(_place(data)))
        config = _config(shown, seed, reward or RewardConfig(), network or NetworkConfig())
        norm = team_norm(spec, config.network)
        update_norm(norm, archive, shown.numbers)
        actor, config = start_policy(
            reference, spec, config, norm, seeds, "--reference", names=(UNIFORM,)
        )
        train, held_out = _split(shown.numbers, holdout_every)
        learner = make_reward_learner(
            spec,
            config,
            norm,
            seeds.torch("reward"),
            CPU,
            actor=actor,
            uniform=reference == UNIFORM,
        )
        assert isinstance(learner.model, PolicyRatio)
        if objective == "nll":
            actor.requires_grad_(True)  # a deviation, too: there is no ratio that it could explode
            loss = cloning_loss(actor)
        else:
            loss = divergence_loss(learner.model, objective)
        draws = StepDraws(archive, train, held_out, config.fitted_reward, seeds.torch("cloning"))
        with progress_bar(steps, console) as progress:
            result = fit_steps(
                actor,
                loss,
                draws,
                steps=steps,
                learning_rate=learning_rate,
                max_grad_norm=config.reward.max_grad_norm,
                progress=lambda taken: progress("imitating", taken),
                stop=stop,
            )
        learner.num_fits = result.steps
        measured = held_out if len(held_out) else train
        report = Imitation(
            data=str(_place(data)),
            environment=shown.environment.name,
            objective=objective,
            seed=seed,
            episodes=len(shown.numbers),
            held_out=len(held_out),
            are_marked=shown.are_marked,
            policy=PolicyReport(
                reference=reference,
                steps=result.steps,
                kept=result.kept,
                first_loss=result.first,
                loss=result.lowest,
                entropy=mean_entropy(actor, draws.every(measured)),
            ),
            folder=folder,
        )
        if folder is not None and partial is not None:
            words = f"by imitation ({objective}) in {result.kept:,} gradient steps"
            content = report.to_json()
            write_fit(folder, partial, content, config, spec, learner, actor=actor, fitted=words)
    return report


def _check_options(objective: str, reference: str, steps: int, holdout_every: int) -> None:
    """Raise `ConfigError` for options that are out of range."""
    if objective not in get_args(Objective):
        known = ", ".join(get_args(Objective))
        raise ConfigError(f"objective: got {objective!r}, expected one of {known}")
    if steps < 1 or holdout_every < 2:
        raise ConfigError(
            f"steps is {steps} and holdout_every {holdout_every}; expected at least 1 and 2"
        )
    if reference == CLONED:
        raise ConfigError(
            f"reference: got {CLONED!r}, which is what nll fits; imitate by nll first, and name "
            "the folder of that fit"
        )


def _config(shown: Shown, seed: int, reward: RewardConfig, network: NetworkConfig) -> Config:
    """Return the settings of a run whose policy would be this one."""
    return replace(
        load_config(overrides={"algorithm": "dpo", "seed": seed}),
        env=EnvConfig(name=shown.environment.name, options=shown.environment.options),
        network=network,
        reward=replace(reward, ratio=replace(reward.ratio, reference_period=0)),
    )


def shown_in(data: PreferenceDataset | Path | str, console: Console | None = None) -> Shown:
    """Return the demonstrations of a dataset (all its episodes if none is marked) or of a run.

    Raises `ConfigError` where there are none, or where they are those of one agent.
    """
    if isinstance(data, PreferenceDataset) or (Path(data) / "dataset.toml").exists():
        dataset = data if isinstance(data, PreferenceDataset) else PreferenceDataset(data)
        archive = dataset.archive(progress=console is not None)
        spec, environment = dataset.spec, dataset.manifest.environment
    else:
        archive, spec, environment = _of_run(Path(data))
    if spec.num_agents == 1:
        raise ConfigError(
            f"{_place(data)} holds episodes of one agent, and a team learns from what all of its "
            "agents saw and did: record the others beside the one that was shown"
        )
    sides = [archive.demonstrations(held_out=held_out) for held_out in (False, True)]
    marked = torch.cat(sides).sort().values
    return Shown(
        archive=archive,
        numbers=marked if len(marked) else archive.numbers,
        are_marked=len(marked) > 0,
        spec=spec,
        environment=environment,
    )


def _of_run(run: Path) -> tuple[EpisodeArchive, EnvSpec, DatasetEnvironment]:
    """Return the whole episodes that a run keeps."""
    _, saved, folder = load_saved(run)
    config, spec = config_in(saved, str(run)), spec_in(saved, str(run))
    trainer = saved.get("trainer")
    if trainer is None or "feedback" not in trainer:
        kind = "a fit" if trainer is None else f"a run of algorithm {config.algorithm}"
        raise ConfigError(
            f"{run}: {kind} keeps no episodes; name a dataset, or a run that learns a reward "
            "(imap, slf, ipl, sl, dpo)"
        )
    feedback = SavedFeedback(trainer["feedback"], config, spec, folder)
    numbers = feedback.whole_episodes().tolist()
    if not numbers:
        raise ConfigError(f"{run}: no episode has ended yet; imitate it later")
    records: Sequence[EpisodeRecord] = [
        record_of(feedback.replay, spec, number) for number in numbers
    ]
    environment = DatasetEnvironment(name=config.env.name, options=dict(config.env.options))
    archive = EpisodeArchive(numbers, records, holdout_every=8, device=CPU)
    return archive, replace(spec, num_envs=1), environment


def _place(data: PreferenceDataset | Path | str) -> Path:
    return data.folder if isinstance(data, PreferenceDataset) else Path(data)


def _split(numbers: Tensor, every: int) -> tuple[Tensor, Tensor]:
    """Return the episodes to train on and those to measure with, every so many-th in their order.

    Of fewer than that none is held out: one episode could hardly tell whether a fit is too close.
    """
    is_held_out = torch.arange(len(numbers)) % every == every - 1
    return numbers[~is_held_out], numbers[is_held_out]
