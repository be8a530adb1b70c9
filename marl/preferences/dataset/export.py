"""From a run's newest checkpoint to a preference dataset, and what a dataset says of a run.

Axes: M episodes, L steps, B pairs.
"""

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
from marl.data.replay import ReplayBuffer
from marl.policy import config_in, section, spec_in
from marl.preferences.buffer import SavedFeedback
from marl.preferences.dataset.answers import Answer, now
from marl.preferences.dataset.dataset import PreferenceDataset
from marl.preferences.dataset.format import EpisodeRecord
from marl.preferences.factory import adds_errors
from marl.preferences.queries import all_pairs, swapped
from marl.preferences.resharding import load_whole
from marl.utils.checkpoint import restoring
from marl.utils.files import output, whole_folder
from marl.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export has written."""

    folder: Path
    episodes: int
    ended: int
    """Episodes that the run has finished, those included that it no longer keeps."""
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
    demonstrations: bool = False,
) -> Exported:
    """Write the newest `episodes` whole episodes that a run keeps, and answers about them.

    Answers that the run has kept are written as they are. Where its labeller is free, and none
    are kept, it labels `pairs` random pairs now, drawn with `seed`; so does `labeller`, a name as
    in ``preferences.labeller``, in its stead. With `demonstrations` the episodes are marked as
    such. The folder appears when it is complete.
    """
    run, folder = Path(run), Path(folder)
    step, saved = load_whole(run / "checkpoints")
    config = config_in(saved, str(run))
    if "trainer" not in saved:
        raise ConfigError(f"{run} holds a fitted reward model; only a run has episodes to export")
    if "feedback" not in section(saved, "trainer", str(run)):
        raise ConfigError(
            f"{run}: a run of algorithm {config.algorithm} keeps no episodes and no answers; "
            "export one that learns a reward (imap, slf, ipl, sl)"
        )
    spec = spec_in(saved, str(run))
    with restoring(run):
        feedback = SavedFeedback(saved["trainer"]["feedback"], config, spec, run)
        numbers = feedback.whole_episodes()
        numbers = numbers[-episodes:] if episodes else numbers
        if len(numbers) == 0:
            raise ConfigError(f"{run}: no episode has ended yet; export it later")
        asked = config.preferences
        if labeller:  # it answers without errors
            asked = replace(asked, labeller=labeller, teacher=TeacherConfig(), tie_break=())
        if labeller or config.preferences.queries_per_iteration == 0:
            first, second = _random_pairs(feedback.replay, numbers, pairs, seed)
            labels = feedback.ask(first, second, asked if labeller else None)
        else:
            first, second, labels = feedback.answers.standing()
            is_exported = torch.isin(first, numbers) & torch.isin(second, numbers)
            first, second, labels = (rows[is_exported] for rows in (first, second, labels))
        source = source_name(asked)
        with (
            whole_folder(folder, "choose another folder") as partial,
            output(folder, "free some space, or choose another folder"),
        ):
            made = PreferenceDataset.create(
                partial,
                spec,
                environment=config.env.name,
                options=config.env.options,
                origin=origin_of(config, run) | {"steps": step},
            )
            quiet = not get_console().is_terminal
            shown = track(numbers.tolist(), "writing episodes", transient=True, disable=quiet)
            for number in shown:
                record = record_of(feedback.replay, spec, number)
                made.add_episode(replace(record, demonstration=demonstrations), number)
            made.answers.extend(_answers(first, second, labels, source))
    unanswered = int(labels.isnan().sum())
    return Exported(
        folder=folder,
        episodes=len(numbers),
        ended=feedback.replay.num_finished,
        answers=len(labels) - unanswered,
        unanswered=unanswered,
        source=source,
    )


def origin_of(config: Config, run: Path) -> dict[str, Option]:
    """Return where the episodes of a run come from, for a dataset's manifest."""
    return {"run": printable(str(run)), "algorithm": config.algorithm, "seed": config.seed}


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
        "step_facts": facts,
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
    """Return how ``answers.jsonl`` names the labeller of some settings."""
    if config.labeller == "llm":
        name = f"llm:{config.llm.model}"
    elif config.labeller == "model":
        name = f"model:{config.model.run}"
    elif config.labeller == "contrast":
        name = f"contrast:{config.contrast.after}"
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
    return printable(f"{name}, noisy" if adds_errors(config.teacher) else name)


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


def _answers(
    first: Int64[Tensor, "B"], second: Int64[Tensor, "B"], labels: Float[Tensor, "B"], source: str
) -> Sequence[Answer]:
    at = now()
    rows = zip(first.tolist(), second.tolist(), labels.tolist(), strict=True)
    return [
        Answer(first=a, second=b, label=None if label != label else label, source=source, at=at)
        for a, b, label in rows
    ]
