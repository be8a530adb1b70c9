"""What one of several processes has of a run's settings, of its questions, and of its patience."""

import threading
import time

import pytest

from marl.config import Config, ConfigError
from marl.config.io import load_config
from marl.preferences.queries import allotted
from marl.utils.launch import answer_seconds, num_restarts, read_launch, share_of

TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "6",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "somewhere",
    "MASTER_PORT": "29400",
}


def test_what_torchrun_says() -> None:
    launch = read_launch(TORCHRUN)
    assert launch is not None
    assert (launch.rank, launch.size, launch.local_rank, launch.local_size) == (5, 6, 1, 2)
    assert (launch.host, launch.port) == ("somewhere", 29400)
    assert read_launch({}) is None
    assert read_launch(TORCHRUN | {"WORLD_SIZE": "1"}) is None
    with pytest.raises(
        ConfigError, match=r"environment variable RANK is 'five'; torchrun sets a number"
    ):
        read_launch(TORCHRUN | {"RANK": "five"})
    assert num_restarts({}) == 0
    assert num_restarts({"TORCHELASTIC_RESTART_COUNT": "2"}) == 2


def test_a_third_of_the_settings() -> None:
    config = load_config(
        overrides={
            "env.num_envs": 12,
            "threads": 4,
            "device": "cuda",
            "reward.batch_episodes": 32,
            "preferences.replay_steps": 100_000,
            "preferences.replay_episodes": 200,
            "preferences.buffer_pairs": 100,
            "preferences.queries_per_iteration": 7,
            "preferences.max_labels": 50,
        }
    )
    assert share_of(config, 1) is config
    share = share_of(config, 3, local_rank=1, local_size=2)
    assert (share.env.num_envs, share.threads, share.device) == (4, 2, "cuda:1")
    assert share.reward.batch_episodes == 11  # rounded up
    kept = share.preferences
    assert (kept.replay_steps, kept.replay_episodes, kept.buffer_pairs) == (33_333, 66, 34)
    assert (kept.queries_per_iteration, kept.max_labels) == (7, 50)
    assert share.total_steps == config.total_steps


def test_a_share_too_small_for_the_minibatches_says_so() -> None:
    settings = {"env.num_envs": 4, "learner.rollout_steps": 2, "learner.minibatches": 8}
    with pytest.raises(ConfigError, match=r"only 4 steps .* \(of each of 2 processes, which have"):
        share_of(load_config(overrides=settings), 2)


def test_questions_are_shared_out_as_equally_as_there_is_room() -> None:
    assert allotted(7, [9, 9, 9], 0) == [3, 2, 2]
    assert allotted(7, [9, 9, 9], 2) == [2, 2, 3]
    assert allotted(7, [1, 0, 9], 0) == [1, 0, 6]
    assert allotted(7, [1, 2, 0], 1) == [1, 2, 0]  # no room for more
    assert allotted(1, [5, 5], 1) == [0, 1]
    assert allotted(0, [5, 5], 0) == [0, 0]


def test_processes_wait_for_a_labeller_of_the_user_s() -> None:
    def waits(**preferences: object) -> float:
        settings = {f"preferences.{name}": value for name, value in preferences.items()}
        return answer_seconds(load_config(overrides=settings))

    assert answer_seconds(Config()) == 900.0
    assert waits(labeller="mine:f", deadline=60.0) == 960.0
    assert waits(labeller="mine:f", deadline=0.0) > 10**6
    assert waits(deadline=60.0) == 900.0


class SilentStore:
    """A store behind a network that is cut: it answers only once the test is over."""

    def __init__(self) -> None:
        self.is_over = threading.Event()

    def add(self, key: str, amount: int) -> int:
        self.is_over.wait(30.0)
        return 2


def test_an_error_is_told_though_the_store_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from marl.utils import distributed

    monkeypatch.setattr(distributed, "_STORE_SECONDS", 0.05)
    store = SilentStore()
    ranks = distributed.ProcessRanks(rank=1, size=2, store=store)  # type: ignore[arg-type]
    began = time.monotonic()
    assert ranks.is_first_to_say("lost")
    assert time.monotonic() - began < 10.0
    store.is_over.set()
    monkeypatch.setattr(distributed, "_STORE_SECONDS", 30.0)
    assert not ranks.is_first_to_say("lost")
