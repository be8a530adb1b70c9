"""What does not fit into memory is refused before it is allocated, with the numbers."""

import dataclasses
import math
import mmap
import os
from pathlib import Path

import pytest
import torch

from envs import EnvSpec, make_env
from marl.commands.envs import fitting_flags
from marl.config import (
    Config,
    ConfigError,
    EnvConfig,
    LearnerConfig,
    NetworkConfig,
    RewardConfig,
)
from marl.trainer import Trainer
from marl.utils import memory_check
from marl.utils.memory_check import (
    available_bytes,
    check_memory,
    least_parameters,
    replay_bytes,
    resident_mib,
    rollout_bytes,
)

IMAGES = EnvSpec(
    name="images",
    num_envs=64,
    obs_sizes=(164_520,) * 20,
    state_size=1_478_400,
    action_kind="continuous",
    action_sizes=(1,) * 20,
    max_steps=125,
    finite_horizon=False,
)
CONFIG = Config(env=EnvConfig(num_envs=64), learner=LearnerConfig(rollout_steps=100))


def test_the_replay_of_images_is_refused_with_what_it_needs() -> None:
    # 256,000 steps are 40 rollouts of 64 x 100. A step: 20 x 164,520 observed numbers, 1,478,400
    # of the state and 20 actions, 4 bytes each: 4.9 TB; the ends of 2,048 episodes: 0.04 TB.
    with pytest.raises(ConfigError) as caught:
        check_memory(CONFIG, IMAGES)
    message = str(caught.value)
    assert "need 4.9 TB for preferences.replay_steps = 256,000" in message
    assert "env.num_envs = 64 environments x learner.rollout_steps = 100" in message
    assert "this machine has" in message
    assert "\n" not in message


def test_without_a_learned_reward_only_the_rollout_counts() -> None:
    config = dataclasses.replace(CONFIG, algorithm="sparse")
    assert replay_bytes(config, IMAGES) == 0
    # Now and next: 2 x 4 bytes x (20 x 164,520 + 1,478,400) for each of 6,400 steps: 244 GB.
    assert rollout_bytes(config, IMAGES) // 10**9 == 244


def test_what_is_said_is_what_is_allocated() -> None:
    config = dataclasses.replace(CONFIG, env=EnvConfig(name="particles/nav_3", num_envs=64))
    trainer = Trainer(config)
    assert trainer.feedback is not None
    assert replay_bytes(config, make_env("particles/nav_3", 64).spec) == (
        trainer.feedback.replay.num_bytes
    )


def test_available_memory_is_between_nothing_and_all() -> None:
    there = available_bytes()
    assert there is None or 2**20 < there < 2**50


def test_layers_that_no_memory_holds_are_refused() -> None:
    small = make_env("particles/nav_3", 4).spec  # 6 observed numbers
    assert least_parameters((8, 4), small) == 6 * 8 + 8 * 4 + 4 * 1
    wide = NetworkConfig(hidden_sizes=(10**6, 10**6))
    with pytest.raises(ConfigError, match=r"^network.hidden_sizes: got .* need 16.0 TB for one"):
        check_memory(Config(network=wide), small)  # 10^12 weights, 16 bytes each
    wide_reward = RewardConfig(hidden_sizes=(10**6, 10**6))
    with pytest.raises(ConfigError, match=r"^reward.hidden_sizes: got .* need 16.0 TB for one"):
        check_memory(Config(reward=wide_reward), small)
    check_memory(Config(reward=wide_reward, algorithm="sparse"), small)  # it learns no reward


SMALL = dataclasses.replace(IMAGES, obs_sizes=(3, 3), state_size=4, action_sizes=(1, 1))


def refused(config: Config = CONFIG, processes: int = 1) -> bool:
    try:
        check_memory(config, SMALL, processes)
    except ConfigError:
        return True
    return False


def test_what_fits_exactly_is_allowed_and_one_byte_less_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = rollout_bytes(CONFIG, SMALL) + replay_bytes(CONFIG, SMALL)
    for there, expected in ((needed, False), (needed - 1, True), (None, False)):
        monkeypatch.setattr(memory_check, "available_bytes", lambda there=there: there)
        assert refused() == expected
        if there is not None:  # two processes need twice as much
            monkeypatch.setattr(memory_check, "available_bytes", lambda there=2 * there: there)
            assert refused(processes=2) == expected


def test_on_a_gpu_the_replay_buffer_counts_there_and_the_rollout_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(CONFIG, device="cuda")
    rollout, replay = rollout_bytes(config, SMALL), replay_bytes(config, SMALL)
    for here, there, expected in (
        (rollout, replay, False),
        (rollout - 1, replay, True),
        (rollout, replay - 1, True),
    ):
        monkeypatch.setattr(memory_check, "available_bytes", lambda here=here: here)
        # Free bytes come first, those of the whole device second.
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=there: (free, 2**60))
        assert refused(config) == expected
        monkeypatch.setattr(memory_check, "available_bytes", lambda here=here: 3 * here)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=there: (3 * free, 2**60))
        assert refused(config, processes=3) == expected


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (10**12, "1.0 TB"),
        (10**12 - 1, "1,000.0 GB"),
        (10**9, "1.0 GB"),
        (10**9 - 1, "1,000 MB"),
        (3_400_000, "3 MB"),
    ],
)
def test_sizes_are_told_in_units_of_a_thousand(
    there: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory_check, "available_bytes", lambda: there)
    with pytest.raises(ConfigError, match=f"this machine has {said} available"):
        check_memory(CONFIG, IMAGES)


def test_available_memory_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    # Lines of /proc/meminfo are in units of 1,024 bytes.
    text = "MemTotal:  9000 kB\nMemFree:  7 kB\nMemAvailable:  2048 kB\n"
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: text)
    assert available_bytes() == 2048 * 1024
    monkeypatch.setattr(Path, "exists", lambda _: False)
    monkeypatch.setattr(os, "sysconf_names", {"SC_PHYS_PAGES": 1, "SC_PAGE_SIZE": 2})
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 500, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert available_bytes() == 500 * 4096
    monkeypatch.setattr(os, "sysconf_names", {"SC_PAGE_SIZE": 2})
    assert available_bytes() is None


def test_resident_memory_is_the_second_number_in_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "PAGESIZE", 4096)
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda _: "9000 640 77 1 0 500 0\n")
    assert resident_mib() == 2.5  # 640 pages of 4 KiB
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert math.isnan(resident_mib())


def test_layers_that_fit_exactly_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    # 3 observed numbers: 3 * 8 + 8 * 4 + 4 * 1 = 60 weights, 16 bytes each. There is no room for
    # the rollout then, which is told of next.
    layers = NetworkConfig(hidden_sizes=(8, 4))
    config = dataclasses.replace(CONFIG, network=layers, algorithm="sparse")
    for there, setting in ((959, "network.hidden_sizes"), (960, "environment images")):
        monkeypatch.setattr(memory_check, "available_bytes", lambda there=there: there)
        with pytest.raises(ConfigError, match=f"^{setting}"):
            check_memory(config, SMALL)


def test_flags_that_fit_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of these pictures has 4.8 MB, and what it leads to as many."""
    pictures = dataclasses.replace(
        IMAGES, obs_image=(457, 120, 3), state_images=(1, 560, 880, 3), num_envs=4
    )
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 10**15)
    assert fitting_flags(pictures) == ("", "")
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 40 * 10**9)
    flags, unfit = fitting_flags(pictures)
    # 9.5 GB of one rollout, 17.2 GB of 16 x (125 + 2 x 50) steps, 1.2 GB of 256 ends.
    assert flags == (
        " --env.num-envs 16 --learner.rollout-steps 50 --preferences.replay-steps 3600 "
        "--preferences.replay-episodes 256"
    )
    assert unfit == ""
    monkeypatch.setattr(memory_check, "available_bytes", lambda: 10**8)
    flags, unfit = fitting_flags(pictures)
    assert flags == ""
    assert "256,000" in unfit
