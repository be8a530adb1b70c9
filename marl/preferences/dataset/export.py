"""From a run's newest checkpoint to a preference dataset.

Axes: M episodes, L steps, B pairs.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from rich import get_console
from rich.progress import track
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, ConfigError, Option, PreferenceConfig, TeacherConfig
from marl.config.io import config_from_dict
from marl.data.replay import ReplayBuffer, make_replay
from marl.policy import spec_in
from marl.preferences.dataset.answers import Answer, now
from marl.preferences.dataset.dataset import PreferenceDataset
from marl.preferences.dataset.format import EpisodeRecord
from marl.preferences.factory import errs, make_labeller
from marl.preferences.labellers import EpisodePairs, checked_labels, load_labeller_state
from marl.preferences.pipeline import PreferenceBuffer
from marl.preferences.queries import all_pairs, swapped
from marl.utils.checkpoint import load_checkpoint
from marl.utils.seeding import Seeds


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has written."""

    folder: Path
    episodes: int
    answers: int
    unanswered: int
    source: str
    """Who gave the answers, as ``answers.jsonl`` names it."""


def export_run(
    run: Path | str,
    folder: Path | str,
    *,
    episodes: int | None = None,
    pairs: int = 1000,
    labeller: str = "",
    seed: int = 0,
) -> Exported:
    """Write the newest `episodes` whole episodes that a run keeps, and answers about them.

    Answers that the run has kept are written as they are. Where its labeller is free, and none
    are kept, it labels `pairs` random pairs now, drawn with `seed`; so does `labeller`, a name as
    in ``preferences.labeller``, in its stead. The folder appears when it is complete.
    """
    run, folder = Path(run), Path(folder)
    step, saved = load_checkpoint(run / "checkpoints")
    config = config_from_dict(saved["config"], str(run))
    if "trainer" not in saved:
        raise ConfigError(f"{run} holds a fitted reward model; only a run has episodes to export")
    if "feedback" not in saved["trainer"]:
        raise ConfigError(
            f"{run}: a run of algorithm {config.algorithm} keeps no episodes and no answers; "
            "export one that learns a reward (imap, slf, ipl, sl)"
        )
    spec = spec_in(saved, config, str(run))
    replay = _replay(config, spec, saved["trainer"]["feedback"]["replay"])
    numbers = torch.cat((replay.available(), replay.available(held_out=True))).sort().values
    numbers = numbers[-episodes:] if episodes else numbers
    if len(numbers) == 0:
        raise ConfigError(f"{run}: no episode has ended yet; export it later")
    if labeller or config.preferences.queries_per_iteration == 0:
        asked = _renamed(config.preferences, labeller)
        first, second = _random_pairs(replay, numbers, pairs, seed)
        state = None if labeller else saved["trainer"]["feedback"]["labeller"]
        labels = _labels(asked, spec, config.seed, state, replay, first, second)
    else:
        asked = config.preferences
        first, second, labels = _kept(asked, saved["trainer"]["feedback"]["buffer"], numbers)
    source = source_name(asked)
    origin: dict[str, Option] = {"run": str(run), "algorithm": config.algorithm}
    origin |= {"seed": config.seed, "steps": step}
    partial = folder.with_name(f".{folder.name}.partial")
    _refuse_occupied(folder)
    shutil.rmtree(partial, ignore_errors=True)  # what a killed export has left
    try:
        made = PreferenceDataset.create(
            partial,
            spec,
            environment=config.env.name,
            options=config.env.options,
            origin=origin,
        )
        quiet = not get_console().is_terminal
        for number in track(numbers.tolist(), "writing episodes", transient=True, disable=quiet):
            made.add_episode(record_of(replay, spec, number), number)
        made.answers.extend(_answers(first, second, labels, source))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    unanswered = int(labels.isnan().sum())
    return Exported(
        folder=folder,
        episodes=len(numbers),
        answers=len(labels) - unanswered,
        unanswered=unanswered,
        source=source,
    )


def record_of(replay: ReplayBuffer, spec: EnvSpec, number: int) -> EpisodeRecord:
    """Return one whole episode of a replay buffer as arrays."""
    episode = replay.episodes(torch.tensor([number], device=replay.device))
    steps, length = episode.transitions(), int(episode.lengths)
    facts = episode.facts_at(torch.arange(length, device=replay.device).unsqueeze(0))
    tensors: dict[str, Tensor | None] = {
        "obs": steps.obs,
        "state": steps.state,
        "actions": steps.actions,
        "final_obs": steps.next_obs[:, -1],
        "final_state": steps.next_state[:, -1],
        "facts_on_the_way": facts,
        "facts": episode.facts,
        "alive": steps.alive if spec.agents_die else None,
        "final_alive": None if steps.next_alive is None else steps.next_alive[:, -1],
        "action_mask": steps.action_mask if spec.masks_actions else None,
    }
    arrays: dict[str, Any] = {
        name: tensor.squeeze(0).cpu().numpy()
        for name, tensor in tensors.items()
        if tensor is not None
    }
    return EpisodeRecord(
        **arrays,
        episode_return=float(episode.returns),
        terminated=bool(episode.terminated),
    )


def source_name(config: PreferenceConfig) -> str:
    """Return how ``answers.jsonl`` names the labeller that a configuration names."""
    if config.labeller == "llm":
        name = f"llm:{config.llm.model}"
    elif config.labeller == "model":
        name = f"model:{config.model.run}"
    elif config.labeller == "facts":
        name = f"rule:facts {' '.join(config.facts)}"
    elif config.labeller == "people":
        name = "people"
    elif config.labeller in ("return", "outcome"):
        name = f"rule:{config.labeller}"
    else:
        name = f"own:{config.labeller}"
    if config.tie_break:
        name += f", ties by {' '.join(config.tie_break)}"
    return f"{name}, noisy" if errs(config.teacher) else name


def _refuse_occupied(folder: Path) -> None:
    """Raise `ConfigError` unless a folder is free to be made."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} already exists and is not empty; choose another folder")


def _replay(config: Config, spec: EnvSpec, state: dict[str, Any]) -> ReplayBuffer:
    """Return the replay buffer of a checkpoint, on the CPU."""
    spec = replace(spec, num_envs=config.env.num_envs)
    rollout_steps = config.learner.rollout_steps
    replay = make_replay(spec, rollout_steps, config.preferences, torch.device("cpu"))
    replay.load_state_dict(state)
    return replay


def _renamed(config: PreferenceConfig, labeller: str) -> PreferenceConfig:
    """Return the settings with another labeller, if one is named: it answers without errors."""
    if not labeller:
        return config
    return replace(config, labeller=labeller, teacher=TeacherConfig(), tie_break=())


def _random_pairs(
    replay: ReplayBuffer, numbers: Int64[Tensor, "M"], count: int, seed: int
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"]]:
    """Return up to `count` different pairs of episodes, both of one side of the split.

    The held-out side gets the share of pairs that it has of the episodes.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.isin(numbers, replay.available(held_out=True))
    of_held_out = round(count / replay.holdout_every)
    drawn = []
    for side, wanted in (
        (numbers[~held_out], count - of_held_out),
        (numbers[held_out], of_held_out),
    ):
        first, second = all_pairs(len(side), side.device)
        chosen = torch.randperm(len(first), generator=generator)[:wanted]
        drawn.append(swapped(side[first[chosen]], side[second[chosen]], generator))
    first, second = (torch.cat(part) for part in zip(*drawn, strict=True))
    return first, second


def _labels(
    config: PreferenceConfig,
    spec: EnvSpec,
    seed: int,
    state: list[dict[str, Any]] | None,
    replay: ReplayBuffer,
    first: Int64[Tensor, "B"],
    second: Int64[Tensor, "B"],
) -> Float[Tensor, "B"]:
    """Return what a labeller says now, going on from what it remembered in the run."""
    labeller = make_labeller(config, spec, Seeds(seed))
    if state is not None:
        load_labeller_state(labeller, state)
    pairs = EpisodePairs(first=replay.episodes(first), second=replay.episodes(second))
    return checked_labels(labeller, config.labeller, pairs).cpu()


def _kept(
    config: PreferenceConfig, state: dict[str, Any], numbers: Int64[Tensor, "M"]
) -> tuple[Int64[Tensor, "B"], Int64[Tensor, "B"], Float[Tensor, "B"]]:
    """Return the kept answers about these episodes, oldest first."""
    buffer = PreferenceBuffer(config.buffer_pairs, torch.device("cpu"))
    buffer.load_state_dict(state)
    size, start = len(buffer), buffer.num_answered % len(buffer.labels)
    order = torch.arange(size)
    if size == len(buffer.labels):
        order = order.roll(-start)
    first, second, labels = buffer.first[order], buffer.second[order], buffer.labels[order]
    there = torch.isin(first, numbers) & torch.isin(second, numbers) & ~labels.isnan()
    return first[there], second[there], labels[there]


def _answers(
    first: Int64[Tensor, "B"], second: Int64[Tensor, "B"], labels: Float[Tensor, "B"], source: str
) -> Sequence[Answer]:
    at = now()
    rows = zip(first.tolist(), second.tolist(), labels.tolist(), strict=True)
    return [
        Answer(first=a, second=b, label=None if label != label else label, source=source, at=at)
        for a, b, label in rows
    ]
