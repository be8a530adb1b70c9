"""What `hypothesis` does to files and states that somebody else has made or damaged."""

import copy
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

NUMBERS = (b"1e999", b"NaN", b"9" * 30, b"-1", b"null", b"[", b'"')
WORDS = (
    b"1e400", b"-inf", b"nan", b"9" * 5000, b"-0", b"0x10", b"true", b'"', b"'''", b"[" * 2000,
    b"{" * 2000, b"[/red]", b"\x1b[31m", b"\xff\xfe", b"\x00", b"os:system", b"../..", b"",
)  # fmt: skip
"""What a word of a text is replaced by."""
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 1.5, math.nan, math.inf, "", "x" * 10_000, "\x1b[31m[/red]\n",
    "os:system", [], {}, (), {"a": {1: [2]}}, torch.empty(0), torch.full((3, 5), math.nan),
    torch.zeros(2, dtype=torch.int64),
)  # fmt: skip
"""What a part of a state is replaced by."""


@dataclass(frozen=True)
class Edit:
    """One change, of which each function below takes what it needs."""

    kind: str
    place: float
    """Where, from 0 to 1."""
    length: int
    number: int
    """Which of the values."""
    content: bytes


KINDS = ("flip", "drop", "insert", "repeat", "number", "cut")
EDITS = st.lists(
    st.builds(
        Edit,
        kind=st.sampled_from(KINDS),
        place=st.floats(0.0, 1.0),
        length=st.integers(0, 40),
        number=st.integers(0, 2000),
        content=st.binary(max_size=40),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Return a file in which some bytes are others, are missing, come twice or are new."""
    data = bytearray(content)
    for edit in edits:
        start = int(edit.place * len(data))
        end = min(len(data), start + edit.length)
        match edit.kind:
            case "flip" if start < len(data):
                data[start] ^= 1 + edit.number % 255
            case "drop":
                del data[start:end]
            case "insert":
                data[start:start] = edit.content
            case "repeat":
                data[start:start] = data[start:end] * (1 + edit.number)
            case "number":
                data[start:end] = NUMBERS[edit.number % len(NUMBERS)]
            case "cut":
                del data[start:]
    return bytes(data)


def reworded(content: bytes, edits: Sequence[Edit]) -> bytes:
    """Return a text in which some words are others."""
    for edit in edits:
        if words := list(re.finditer(rb"[\w.+-]+", content)):
            word = words[int(edit.place * (len(words) - 1))]
            new = WORDS[edit.number % len(WORDS)]
            content = content[: word.start()] + new + content[word.end() :]
    return content


def altered(state: dict[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return a state in which one or two parts are missing, something else, or elsewhere."""
    state = copy.deepcopy(state)
    for edit in edits[:2]:
        draw = random.Random(f"{edit.place} {edit.number} {edit.length}")
        holder, key = _somewhere(state, draw)
        match edit.kind:
            case "drop":
                del holder[key]
            case "repeat":
                there, name = _somewhere(state, draw)
                holder[key] = copy.deepcopy(there[name])
            case _:
                holder[key] = draw.choice(VALUES)
    return state


def _somewhere(state: dict[str, Any], draw: random.Random) -> tuple[Any, Any]:
    """Return a container and a key in it, any depth and any key of a container as likely."""
    holder: Any = state
    while True:
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        inner = holder[key]
        if not (isinstance(inner, dict | list) and inner) or draw.random() < 0.2:
            return holder, key
        holder = inner
