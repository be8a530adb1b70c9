"""Pictures stay bytes, are read by convolutions everywhere, and are learned from."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete

import marl
from benchmarks.trials import differences
from envs import make_env
from envs.adapters.spaces import AgentSpaces
from envs.checker import check_env
from envs.errors import EnvError
from envs.native import Picture
from marl.config import ConfigError
from marl.data.rollout import rollout_buffers
from marl.data.types import step_fields
from marl.export import export_policy
from marl.nn.encoders import FEATURES, ImageEncoder
from marl.preferences.dataset import DatasetError, PreferenceDataset
from marl.preferences.dataset.export import export_run
from marl.preferences.labellers import novelty
from marl.rewards.fit import fit_reward
from marl.utils.checkpoint import load_checkpoint
from marl.utils.memory_check import replay_bytes
from tests.pictures import STEPS

SIDES = "tests.pictures:Sides"
SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": SIDES,
    "env.num_envs": 4,
    "env.options": {"workers": 0, "reward_mode": "episodic"},
    "learner.rollout_steps": 10,
    "learner.minibatches": 2,
    "learner.epochs": 2,
    "total_steps": 80,
    "checkpoint_every": 40,
    "preferences.replay_steps": 400,
    "reward.gradient_steps": 2,
}


def trained(folder: Path | None = None, **overrides: Any) -> list[dict[str, float]]:
    """Return the metrics of a short run."""
    named = {name.replace("__", "."): value for name, value in overrides.items()}
    return list(marl.train(marl.load_config(overrides=SMALL | named), folder))


@pytest.mark.parametrize(("shape", "channels"), [((16, 16, 3), 3), ((3, 16, 16), 3), ((16, 16), 1)])
def test_pictures_are_bytes_from_the_environment_to_the_buffers(
    shape: tuple[int, ...], channels: int
) -> None:
    env = make_env(SIDES, 2, workers=0, shape=shape)
    spec, step = env.spec, env.reset(0)
    assert spec.obs_image == (16, 16, channels)
    assert spec.state_images == (2, 16, 16, channels)
    assert step.obs.dtype == step.state.dtype == step.final_obs.dtype == np.uint8
    assert step.obs.shape == (2, 2, 256 * channels)
    # The bright square, of 8 by 8 pixels, is in the left or the right half of rows 4 to 11.
    middle = step.obs.reshape(2, 2, 16, 16, channels)[:, :, 4:12]
    assert ((middle == 255).all(axis=(2, 4)).sum(axis=2) == 8).all()
    assert step_fields(spec)["obs"][1] == torch.uint8
    buffers = rollout_buffers(spec, 3, False)
    assert {
        buffers[f"{way}{name}"].dtype for way in ("", "next_") for name in ("obs", "state")
    } == {torch.uint8}
    assert check_env(env, steps=20) == []


def test_small_and_grey_pictures_are_means_of_squares() -> None:
    picture = Picture(height=5, width=4, channels=3, shrink=2, grey=True)
    array = np.arange(60, dtype=np.uint8).reshape(5, 4, 3)
    assert picture.reduced == (2, 2, 1)
    # Pixels 0, 1, 4, 5 hold 0..2, 3..5, 12..14, 15..17: the mean of all is 8.5, rounded up.
    assert picture.read(array)[..., 0].tolist() == [[9, 15], [33, 39]]
    assert picture.read(np.full((5, 4, 3), 255, np.uint8)).tolist() == [[[255]] * 2] * 2
    first = Picture(height=5, width=4, channels=3, channels_first=True)
    assert first.read(np.moveaxis(array, -1, 0)).tolist() == array.tolist()


def test_what_cannot_be_made_smaller_is_told() -> None:
    with pytest.raises(EnvError, match="shrink is 20, and pictures have 16 x 16 pixels"):
        make_env(SIDES, 1, workers=0, shrink=20)
    with pytest.raises(EnvError, match="shrink and grey are for teams in which every agent"):
        AgentSpaces(["a"], [Box(-1, 1, (9, 9))], [Discrete(2)], grey=True)


def test_pictures_take_a_quarter_of_the_memory_of_numbers() -> None:
    spec = make_env(SIDES, 4, workers=0).spec
    config = marl.load_config(overrides=SMALL)
    as_numbers = replace(spec, obs_image=(), state_images=())
    share = replay_bytes(config, spec) / replay_bytes(config, as_numbers)
    assert 0.25 < share < 0.26


@pytest.mark.parametrize(
    "overrides",
    [
        {"algorithm": "imap", "network__recurrence": "gru", "reward__recurrence": "gru"},
        {"algorithm": "slf", "reward__mixer": "two_layer", "reward__local_form": "plain"},
        {"algorithm": "ipl"},
        {"algorithm": "imap", "learner__kind": "happo", "network__share_parameters": False},
        {"algorithm": "imap", "reward__model": "policy_ratio", "reward__gamma": None},
        {"algorithm": "ircr", "learner__kind": "ippo"},
    ],
)
def test_every_kind_of_network_reads_them(overrides: dict[str, Any]) -> None:
    overrides = {name: value for name, value in overrides.items() if value is not None}
    metrics = trained(**overrides)
    assert metrics[-1]["steps"] == 80


@pytest.mark.parametrize("algorithm", ["arel", "stas", "tar2", "rudder"])
def test_models_of_whole_episodes_say_that_they_do_not(algorithm: str) -> None:
    with pytest.raises(ConfigError, match=r"model: \w+ does not read pictures, .* tests.pictures"):
        trained(algorithm=algorithm)


def test_a_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config = marl.load_config(overrides=SMALL)
    list(marl.train(config, whole))
    with closing(marl.train(config, cut)) as run:
        next(run)
    state = load_checkpoint(cut / "checkpoints")[1]["trainer"]
    assert state["feedback"]["replay"]["steps"]["obs"].dtype == torch.uint8
    list(marl.train(config, cut, resume=True))
    assert differences(whole, cut) == []
    policy = marl.load(cut)
    with policy.open_env(3) as env:
        actions = policy.act(env.reset(0).obs, greedy=True)
    assert actions.shape == (3, 2)
    exported = export_policy(policy, tmp_path / "team.pt2")
    assert exported.difference < 1e-5
    assert exported.inputs[0].kind == "uint8"
    assert_a_dataset_keeps_bytes(whole, tmp_path / "pairs")


def assert_a_dataset_keeps_bytes(run: Path, folder: Path) -> None:
    """A run's episodes stay bytes on the disk and in memory, and a reward is fitted to them."""
    export_run(run, folder, pairs=30)
    made = PreferenceDataset(folder)
    first = made.numbers()[0]
    record = made.episode(first)
    seen = [record.obs, record.state, record.final_obs, record.final_state]
    assert [array.dtype for array in seen] == [np.uint8] * 4
    episodes = made.archive().episodes(torch.tensor([first]))
    assert episodes.transitions().next_obs.dtype == torch.uint8
    assert novelty(episodes).isfinite().all()
    assert fit_reward(made, steps=2).train.pairs > 0
    with pytest.raises(DatasetError, match="obs has dtype float32, expected uint8"):
        made.add_episode(replace(record, obs=record.obs.astype(np.float32)))


def test_a_large_batch_is_read_in_parts_with_the_same_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("marl.nn.encoders.MAX_PIXELS", 81 * 50)
    encoder = ImageEncoder((9, 9, 1), torch.Generator().manual_seed(0))
    pixels = torch.randint(256, (53, 81), dtype=torch.uint8)
    gradients = []
    for parts in ([pixels], pixels.split(40)):
        encoder.zero_grad()
        out = torch.cat([encoder(part) for part in parts])
        assert out.shape == (53, FEATURES)
        out.square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_pictures_are_learned_from() -> None:
    """Random play is paid 2.5 of 5; a policy that sees nothing cannot do better."""
    metrics = trained(
        algorithm="sparse",
        env__num_envs=16,
        env__options={"workers": 0},
        learner__epochs=4,
        total_steps=1920,
    )
    assert metrics[-1]["return/mean"] > 0.9 * STEPS
