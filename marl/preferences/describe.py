"""Finished episodes in words: what a language model, or a person, is told about them.

Axes: M episodes, F facts, K moments, L steps, N agents.

Only numbers, and names from the environment's registry of facts, enter a text. Those names may
come from an untrusted environment: what is not printable is escaped, and their length is capped.
Neither rewards nor observations are told.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from envs import Fact
from marl.data.types import Episodes
from marl.utils.text import one_line

PARTS = 4
"""Equal parts of an episode after which the whole-trajectory form tells the facts."""


def describe(episodes: Episodes, facts: tuple[Fact, ...]) -> list[str]:
    """Return the final-state form of each episode: its length, how it ended, a line per fact.

    Of an environment that tells no facts, the return is told instead.
    """
    values = episodes.facts.tolist()
    texts = []
    for index, row in enumerate(values):
        lines = [_headline(episodes, index)]
        lines += [f"- {_told(fact, value)}" for fact, value in zip(facts, row, strict=True)]
        if not facts:
            lines.append(f"- return: {_number(float(episodes.returns[index]))}")
        texts.append("\n".join(lines))
    return texts


def describe_whole(episodes: Episodes, facts: tuple[Fact, ...]) -> list[str]:
    """Return the final-state form, with the facts on the way and the moments that stand out.

    Those moments are the first death and, of every fact that is better higher or lower, the part
    of the episode in which it changed most.
    """
    offsets = _part_ends(episodes)
    ends, course = (offsets + 1).tolist(), episodes.facts_at(offsets)
    deaths = _first_deaths(episodes)
    texts = []
    for index, final in enumerate(describe(episodes, facts)):
        lines = [final]
        if facts:
            lines.append("On the way:")
            for step, values in zip(ends[index], course[index].tolist(), strict=True):
                told = [
                    f"{one_line(fact.meaning)} {_number(value)}"
                    for fact, value in zip(facts, values, strict=True)
                ]
                lines.append(f"- after step {step}: {'; '.join(told)}")
        lines += _turning_points(course[index], ends[index], facts)
        if deaths[index] is not None:
            lines.append(f"- first agent lost at step {deaths[index]}")
        texts.append("\n".join(lines))
    return texts


def _headline(episodes: Episodes, index: int) -> str:
    """Return the sentence about an episode's length and end."""
    ended = "the task was over" if episodes.terminated[index] else "it was interrupted"
    return f"The episode lasted {int(episodes.lengths[index])} steps; then {ended}."


def _told(fact: Fact, value: float) -> str:
    """Return a fact with its value, its unit and its direction."""
    unit = f" {one_line(fact.unit)}" if fact.unit else ""
    direction = {True: " (more is better)", False: " (less is better)", None: ""}
    return f"{one_line(fact.meaning)}: {_number(value)}{unit}{direction[fact.higher_is_better]}"


def _turning_points(
    course: Float[Tensor, "K F"], ends: list[int], facts: tuple[Fact, ...]
) -> list[str]:
    """Return a line for each directed fact that changed after the first part, at its most."""
    lines = []
    changes = course.diff(dim=0)
    for column, fact in enumerate(facts):
        steps = changes[:, column]
        if fact.higher_is_better is None or len(steps) == 0 or not bool(steps.any()):
            continue
        most = int(steps.abs().argmax())
        lines.append(
            f"- {one_line(fact.meaning)} changed most between steps {ends[most]} and "
            f"{ends[most + 1]}, by {_number(float(steps[most]), signed=True)}"
        )
    return lines


def _part_ends(episodes: Episodes) -> Tensor:
    """Return (M, K) offsets of the last step of each part; short episodes repeat some."""
    parts = torch.arange(1, PARTS + 1, device=episodes.lengths.device)
    ends: Tensor = (episodes.lengths.unsqueeze(-1) * parts + PARTS - 1) // PARTS - 1
    return ends.clamp(min=0)


def _first_deaths(episodes: Episodes) -> list[int | None]:
    """Return the step after which an agent of each episode was first missing, if any was."""
    alive = episodes.alive()
    if alive is None or alive.shape[1] < 2:
        return [None] * len(episodes)
    lost = (alive[:, :-1] & ~alive[:, 1:]).any(dim=-1)
    first = lost.to(torch.int8).argmax(dim=1).tolist()
    return [
        step + 1 if any_lost else None
        for step, any_lost in zip(first, lost.any(dim=1).tolist(), strict=True)
    ]


def _number(value: float, *, signed: bool = False) -> str:
    """Return a number with four digits; ``unknown`` if it is not finite."""
    if not math.isfinite(value):
        return "unknown"
    return f"{value + 0.0:+.4g}" if signed else f"{value + 0.0:.4g}"
