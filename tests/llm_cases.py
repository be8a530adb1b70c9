"""What the tests of the language-model labeller share: pairs, settings, and a fake clock.

Axes: B pairs.
"""

import math
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from envs import EnvSpec
from marl.config.preferences import LlmConfig
from marl.data.replay import ReplayBuffer
from marl.data.types import Episodes
from marl.preferences.labellers import EpisodePairs, Labeller
from marl.preferences.llm import LabellerWarning, LlmLabeller
from marl.preferences.llm.protocol import Reply
from tests.scripted import ScriptedEnv

SPEC: EnvSpec = ScriptedEnv([[5]]).spec
"""An environment without facts: episodes are described by return and length."""


def pairs_of(first: list[float], second: list[float]) -> EpisodePairs:
    """Return pairs of episodes with these returns and nothing else."""
    replay = ReplayBuffer(
        SPEC, 5, max_steps=100, max_episodes=4, holdout_every=2, device=torch.device("cpu")
    )

    def side(returns: list[float]) -> Episodes:
        numbers = torch.arange(len(returns))
        return Episodes(
            replay=replay,
            numbers=numbers,
            returns=torch.tensor(returns),
            lengths=torch.full_like(numbers, 5),
            terminated=torch.ones(len(returns), dtype=torch.bool),
            facts=torch.zeros(len(returns), 0),
        )

    return EpisodePairs(first=side(first), second=side(second))


class FakeClock:
    """A clock that only `sleep` moves: waits take no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.now = 100.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def clock(self) -> float:
        return self.now


def settings(address: str, folder: Path, **changes: Any) -> LlmConfig:
    """Return settings: no preflight, and timeouts that even a busy machine does not run into."""
    values: dict[str, Any] = {
        "base_url": address,
        "model": "stand-in",
        "cache": str(folder / "cache.sqlite"),
        "preflight": "off",
        "timeout": 10.0,
        "deadline": 20.0,
        "api_key_env": "STAND_IN_KEY",
    }
    return LlmConfig(**(values | changes))


def make(
    address: str,
    folder: Path,
    clock: FakeClock | None = None,
    fallback: Labeller | None = None,
    run: str = "",
    **changes: Any,
) -> LlmLabeller:
    """Return a labeller that has not asked anything yet."""
    clock = clock or FakeClock()
    return LlmLabeller(
        settings(address, folder, **changes), SPEC, fallback, clock.sleep, clock.clock, run
    )


def label_opposites(address: str, folder: Path, count: int, **changes: Any) -> list[float]:
    """Return the labels of pairs of 2 `count` different episodes, the better ones first."""
    first = [float(number) for number in range(count)]
    labeller = make(address, folder, **changes)
    labels: list[float] = labeller(pairs_of(first, [-1.0 - number for number in first])).tolist()
    labeller.close()
    return labels


def kept_replies(folder: Path) -> dict[str, str]:
    """Return every stored reply under the body of its request."""
    if not (folder / "cache.sqlite").exists():
        return {}
    with closing(sqlite3.connect(folder / "cache.sqlite")) as database:
        tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        return dict(database.execute("SELECT request, reply FROM answers")) if tables else {}


def outcomes(folder: Path) -> list[str]:
    """Return how every call ended."""
    (path,) = folder.glob("*.sqlite")
    with closing(sqlite3.connect(path)) as database:
        return [outcome for (outcome,) in database.execute("SELECT outcome FROM calls ORDER BY id")]


def answers(labeller: LlmLabeller, first: list[float], second: list[float]) -> list[float]:
    """Return the labels of pairs with these returns; warnings are looked at elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabellerWarning)
        labels = labeller(pairs_of(first, second))
    assert isinstance(labeller, Labeller)
    assert labels.shape == (len(first),)
    return labels.tolist()


def sigmoid(odds: float) -> float:
    return 1.0 / (1.0 + math.exp(-odds))


def reply(text: str = "A", **fields: Any) -> Reply:
    values: dict[str, Any] = {
        "text": text,
        "finish": "stop",
        "model": "m",
        "candidates": (),
        "prompt_tokens": 100,
        "reply_tokens": 1,
    }
    return Reply(**(values | fields))
