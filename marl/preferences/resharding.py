"""A run that goes on with another number of processes: its episodes and answers, dealt out anew.

A new run that starts with the episodes of another (`init_buffer`) gets them in the same way.

Environments have numbers in the whole run: environment e of process k of n is k E / n + e of E. A
process of the new run has those with its numbers, and what is kept of their episodes. Open episodes
are cut: environments begin anew. Answers about two episodes that come to different processes are
left out; all are counted.

Axes: T time, E environments, M episodes, B pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from marl.config import Config, ConfigError
from marl.policy import config_in
from marl.preferences.buffer import PreferenceBuffer
from marl.utils.checkpoint import (
    checkpoint_name,
    load_checkpoint,
    num_processes,
    read_all,
    restoring,
)
from marl.utils.launch import share_of

_NEVER = -(2**62)
"""Start of an episode that there is not: it counts as overwritten."""
States = Sequence[Mapping[str, Any]]
"""What `Trainer.state_dict` returned in each of the processes that have saved a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Cut:
    """What a run loses when its processes become others."""

    open_episodes: int
    answers: int
    """Answered pairs whose episodes come to different processes, or are more than are kept."""
    kept: int
    """Answered pairs that are kept."""

    def __str__(self) -> str:
        text = f"{self.open_episodes} open episodes are cut"
        if self.answers:
            text += (
                f", and {self.answers} of {self.answers + self.kept} answered pairs are left out, "
                "whose episodes belong to different processes now"
            )
        return text


def resharded(states: States, config: Config, rank: int, size: int) -> dict[str, Any]:
    """Return the state of process `rank` of `size`, without its environments and random draws.

    Networks, statistics and counts over all processes are those of process 0, which all have.
    Hidden states are zero, since all episodes begin.
    """
    state = {k: v for k, v in states[0].items() if k not in ("collector", "seeds")}
    if "reward" in state:
        state["reward"] = {k: v for k, v in state["reward"].items() if k != "hidden"}
    if "feedback" not in state:
        return state
    feedbacks = [saved["feedback"] for saved in states]
    dealt = _deal(feedbacks, config, rank, size)
    myopic = feedbacks[0]["myopic"]
    if myopic is not None:
        myopic = {"open": torch.zeros(config.env.num_envs // size, dtype=myopic["open"].dtype)}
    state["feedback"] = feedbacks[0] | {
        "replay": _replay([f["replay"] for f in feedbacks], dealt),
        "buffer": _answers(feedbacks, dealt, share_of(config, size)),
        "myopic": myopic,
        "labeller": feedbacks[rank % len(feedbacks)]["labeller"],
        "is_informative": any(f["is_informative"] for f in feedbacks),
    }
    return state


def inherited(feedback: Mapping[str, Any], config: Config, rank: int, size: int) -> dict[str, Any]:
    """Return the episodes and answers with which process `rank` of `size` of a new run starts.

    `feedback` is the state of another run's `FeedbackPipeline`, as one process has it, with as many
    environments and a replay buffer of the same settings. Its open episodes are cut.
    """
    dealt = _deal([feedback], config, rank, size)
    return {
        "replay": _replay([feedback["replay"]], dealt),
        "buffer": _answers([feedback], dealt, share_of(config, size)),
    }


def losses(states: States, config: Config, size: int) -> Cut:
    """Return what is lost where the processes that have saved become `size` others.

    Raises `ConfigError` where they cannot.
    """
    if config.asks_people:
        raise ConfigError(
            'preferences.labeller: "people" are asked about films of the episodes of process 0, '
            "which cannot be dealt out; go on with as many processes as before"
        )
    open_episodes = sum(int((s["collector"]["open_lengths"] > 0).sum()) for s in states)
    if "feedback" not in states[0]:
        return Cut(open_episodes=open_episodes, answers=0, kept=0)
    feedbacks = [saved["feedback"] for saved in states]
    before = len(_standing(feedbacks, [_Unmoved(f["replay"]) for f in feedbacks]))
    capacity = share_of(config, size).preferences.buffer_pairs
    kept = 0
    for rank in range(size):
        dealt = _deal(feedbacks, config, rank, size)
        kept += min(capacity, len(_standing(feedbacks, dealt.places)))
    return Cut(open_episodes=open_episodes, answers=before - kept, kept=kept)


def load_whole(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the step and state of the newest good checkpoint, with the episodes and answers of all
    processes as one process would have them."""
    step, saved = load_checkpoint(folder)
    return step, as_one(saved, folder / checkpoint_name(step))


def as_one(saved: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return what a checkpoint at `path` holds, given what process 0 has saved in it, with the
    episodes and answers of all processes."""
    if num_processes(saved) == 1 or "feedback" not in saved.get("trainer", {}):
        return saved
    states = [state["trainer"] for state in read_all(path)]
    run = path.parent.parent
    config = config_in(saved, str(run))
    with restoring(run):
        feedback = resharded(states, config, 0, 1)["feedback"]
    return saved | {"trainer": saved["trainer"] | {"feedback": feedback}}


@dataclass(frozen=True, kw_only=True)
class _Dealt:
    """The episodes that come to one process, in the order of time."""

    owner: Tensor
    """(M,) Process that had each."""
    slot: Tensor
    """Its row in the table of that process."""
    number: Tensor
    """Its number from now on."""
    num_finished: int
    """The number that comes next."""
    columns: slice
    """The process's environments."""
    capacity: int
    """Episodes that it keeps."""
    places: list[dict[int, int]]
    """Of each old process, the new numbers of these episodes by their old ones."""


def _whole(replay: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the numbers of the whole episodes of a process, and their rows in its table."""
    table = replay["episodes"]
    capacity, ring_steps = len(table["start"]), len(replay["facts"])
    numbers = torch.arange(max(0, replay["num_finished"] - capacity), replay["num_finished"])
    slots = numbers % capacity
    is_whole = table["start"][slots] >= max(0, replay["time"] - ring_steps)
    return numbers[is_whole], slots[is_whole]


class _Unmoved(dict[int, int]):
    """The place of every whole episode of a process where none moves: its own number."""

    def __init__(self, replay: Mapping[str, Any]) -> None:
        super().__init__((number, number) for number in _whole(replay)[0].tolist())


def _deal(feedbacks: Sequence[Mapping[str, Any]], config: Config, rank: int, size: int) -> _Dealt:
    """Return the episodes that come to process `rank` of `size`."""
    had, has = config.env.num_envs // len(feedbacks), config.env.num_envs // size
    first = rank * has
    owners, slots, numbers, ends = [], [], [], []
    for process, feedback in enumerate(feedbacks):
        table = feedback["replay"]["episodes"]
        number, slot = _whole(feedback["replay"])
        env = table["env"][slot] + process * had
        is_mine = (env >= first) & (env < first + has)
        slot = slot[is_mine]
        slots.append(slot)
        numbers.append(number[is_mine])
        ends.append(table["start"][slot] + table["length"][slot])
        owners.append(torch.full_like(slot, process))
    order = torch.cat(ends).argsort(stable=True)
    owner, slot, old = (torch.cat(parts)[order] for parts in (owners, slots, numbers))
    every = config.preferences.holdout_every
    number, num_finished = _numbered(old % every == every - 1, every)
    capacity = share_of(config, size).preferences.replay_episodes
    stays = number >= num_finished - capacity
    owner, slot, old, number = (column[stays] for column in (owner, slot, old, number))
    places: list[dict[int, int]] = [{} for _ in feedbacks]
    for whose, before, now in zip(owner.tolist(), old.tolist(), number.tolist(), strict=True):
        places[whose][before] = now
    return _Dealt(
        owner=owner,
        slot=slot,
        number=number,
        num_finished=num_finished,
        columns=slice(first, first + has),
        capacity=capacity,
        places=places,
    )


def _numbered(held_out: Tensor, every: int) -> tuple[Tensor, int]:
    """Return numbers for episodes in the order of time, and the number that comes next.

    Each stays on its side of the split: every so many-th number is held out. Numbers of which there
    are none come first.
    """
    count_held, count_train = int(held_out.sum()), int((~held_out).sum())
    end = max(count_held, -(-count_train // (every - 1))) * every
    slots = torch.arange(end)
    is_held = slots % every == every - 1
    numbers = torch.zeros(len(held_out), dtype=torch.int64)
    for side, count in ((True, count_held), (False, count_train)):
        those = slots[is_held == side]
        numbers[held_out == side] = those[len(those) - count :]
    return numbers, end


def _replay(replays: Sequence[Mapping[str, Any]], dealt: _Dealt) -> dict[str, Any]:
    """Return the replay buffer of a process."""
    written = min(dealt.num_finished, dealt.capacity)
    slots = dealt.number % dealt.capacity

    def steps(tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(tensors), dim=1)[:, dealt.columns].clone()

    def rows(columns: Sequence[Tensor]) -> Tensor:
        kept = torch.zeros((written, *columns[0].shape[1:]), dtype=columns[0].dtype)
        for owner, column in enumerate(columns):
            is_his = dealt.owner == owner
            kept[slots[is_his]] = column[dealt.slot[is_his]]
        return kept

    tables = [replay["episodes"] for replay in replays]
    episodes = {name: rows([table[name] for table in tables]) for name in tables[0]}
    had = replays[0]["facts"].shape[1]
    episodes["env"][slots] += dealt.owner * had - dealt.columns.start
    is_there = torch.zeros(written, dtype=torch.bool)
    is_there[slots] = True
    episodes["start"].masked_fill_(~is_there, _NEVER)
    episodes["returns"].masked_fill_(~is_there, torch.nan)
    names = {part: replays[0][part] for part in ("steps", "finals")}
    return {
        "time": replays[0]["time"],
        "num_finished": dealt.num_finished,
        "latest": dealt.num_finished,
        "steps": {n: steps([replay["steps"][n] for replay in replays]) for n in names["steps"]},
        "facts": steps([replay["facts"] for replay in replays]),
        "finals": {n: rows([replay["finals"][n] for replay in replays]) for n in names["finals"]},
        "episodes": episodes,
    }


def _standing(
    feedbacks: Sequence[Mapping[str, Any]], places: Sequence[Mapping[int, int]]
) -> list[tuple[int, int, int, float]]:
    """Return time, sides and label of the answers whose episodes have a place, oldest first."""
    found = []
    for feedback, place in zip(feedbacks, places, strict=True):
        buffer = feedback["buffer"]
        size = min(buffer["num_answered"], len(buffer["labels"]))
        names = ("asked_at", "first", "second", "labels")
        for time, one, other, label in zip(
            *(buffer[n][:size].tolist() for n in names), strict=True
        ):
            if label == label and one in place and other in place:
                found.append((time, place[one], place[other], label))
    return sorted(found, key=lambda answer: answer[0])


def _answers(
    feedbacks: Sequence[Mapping[str, Any]], dealt: _Dealt, share: Config
) -> dict[str, Any]:
    """Return the answered pairs of a process."""
    capacity = share.preferences.buffer_pairs
    standing = _standing(feedbacks, dealt.places)[-capacity:]
    buffer = PreferenceBuffer(max(1, len(standing)), torch.device("cpu"))
    for name, column in zip(
        ("asked_at", "first", "second", "labels"), zip(*standing, strict=True), strict=False
    ):
        tensor: Tensor = getattr(buffer, name)
        tensor[: len(standing)] = torch.tensor(column, dtype=tensor.dtype)
    buffer.num_answered = len(standing)
    return buffer.state_dict()
