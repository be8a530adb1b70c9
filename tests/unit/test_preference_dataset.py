"""Preference datasets: what was collected comes back bit for bit, and damage is named.

Axes: M episodes, L steps.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs import EnvSpec
from marl.config import PreferenceConfig, TeacherConfig
from marl.config.preferences import LlmConfig, ModelConfig
from marl.data.replay import ReplayBuffer
from marl.preferences.buffer import PreferenceBuffer
from marl.preferences.dataset import Answer, DatasetError, EpisodeRecord, PreferenceDataset, now
from marl.preferences.dataset.export import record_of, source_name
from marl.preferences.dataset.format import episode_path
from tests.scripted import ScriptedEnv, scripted_collector

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "deaths, masks and facts": {"agents_die": True, "masks_actions": True, "tells_facts": True},
    "deaths at the end": {"agents_die": True, "tells_final_alive": True},
    "continuous": {"continuous": True, "obs_sizes": (4, 2), "action_sizes": (3, 1)},
}


def replay_of(kind: str) -> tuple[ReplayBuffer, EnvSpec]:
    """Return a replay buffer with episodes of 3 to 7 steps whose ring has wrapped around."""
    env = ScriptedEnv([[3, 5, 7], [6, 2]], **KINDS[kind])
    collector, actor = scripted_collector(env, 4)
    replay = ReplayBuffer(
        env.spec, 4, max_steps=64, max_episodes=64, holdout_every=3, device=torch.device("cpu")
    )
    if kind == "continuous":
        actor.chosen = lambda obs: obs[..., :3] / 7.0
    for _ in range(11):
        replay.append(collector.collect(actor)[0])
    return replay, env.spec


def dataset_of(folder: Path, kind: str = "plain") -> tuple[PreferenceDataset, ReplayBuffer]:
    """Return a dataset of all whole episodes of a replay buffer, and that buffer."""
    replay, spec = replay_of(kind)
    made = PreferenceDataset.create(folder, spec, origin={"by": "a test"})
    for number in torch.cat((replay.available(), replay.available(held_out=True))).tolist():
        made.add_episode(record_of(replay, spec, number), number)
    return made, replay


def tensors_of(value: Any) -> dict[str, torch.Tensor | None]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name != "replay"}


def assert_equal(left: Any, right: Any) -> None:
    for name, tensor in tensors_of(left).items():
        other = tensors_of(right)[name]
        if tensor is None or other is None:
            assert tensor is other, name
        else:
            assert torch.equal(tensor, other), name
            assert tensor.dtype == other.dtype, name


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_stored_comes_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    _, replay = dataset_of(tmp_path / "dataset", kind)
    opened = PreferenceDataset(tmp_path / "dataset")
    archive = opened.archive(holdout_every=3)
    assert opened.manifest.origin == {"by": "a test"}
    assert opened.spec == dataclasses.replace(replay_of(kind)[1], num_envs=1)
    for held_out in (False, True):
        numbers = replay.available(held_out=held_out)
        assert len(numbers) > 1
        assert torch.equal(archive.available(held_out=held_out), numbers)
        here, there = archive.episodes(numbers), replay.episodes(numbers)
        assert_equal(here, there)
        assert_equal(here.transitions(), there.transitions())
        offsets = torch.tensor([[0, 2, 9]]).expand(len(numbers), 3)
        assert torch.equal(here.facts_at(offsets), there.facts_at(offsets))
        assert torch.equal(archive.final_states(numbers), replay.final_states(numbers))
        alive, expected = here.alive(), there.alive()
        assert (alive is None) == (expected is None)
        assert alive is None or torch.equal(alive, expected)


def test_the_moments_are_over_all_episodes(tmp_path: Path) -> None:
    made, replay = dataset_of(tmp_path / "dataset")
    numbers = torch.tensor(made.numbers())
    returns = replay.episodes(numbers).returns.double()
    mean, deviation = made.archive().return_moments()
    assert mean == pytest.approx(float(returns.mean()))
    assert deviation == pytest.approx(float(returns.std(correction=0)))


def test_numbers_go_on_and_are_never_used_twice(tmp_path: Path) -> None:
    made, _ = dataset_of(tmp_path / "dataset")
    record, last = made.episode(made.numbers()[-1]), made.numbers()[-1]
    assert made.add_episode(record) == last + 1
    with pytest.raises(DatasetError, match=f"episode {last} is there already"):
        made.add_episode(record, last)
    with pytest.raises(DatasetError, match="episode -1 cannot be: numbers begin at 0"):
        made.add_episode(record, -1)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    _, spec = replay_of("plain")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match="already holds something; choose another folder"):
        PreferenceDataset.create(tmp_path, spec)
    PreferenceDataset.create(tmp_path / "dataset", spec)
    with pytest.raises(DatasetError, match="already holds a preference dataset"):
        PreferenceDataset.create(tmp_path / "dataset", spec)
    with pytest.raises(DatasetError, match=r"notes\.txt is a file"):
        PreferenceDataset.create(tmp_path / "notes.txt", spec)
    with pytest.raises(DatasetError, match=r"is no preference dataset: it has no dataset\.toml"):
        PreferenceDataset(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("format = 1", "format = 2", "the dataset has format 2, this program reads up to 1; use"),
        ("format = 1", 'format = "1"', "format is '1', expected a number from 1 to 1"),
        ("state_size = 3", "state_sise = 3", "unknown key spec.state_sise; did you mean spec.stat"),
        ("state_size = 3", "", "there is no spec.state_size"),
        ("state_size = 3", "state_size = 0", "spec.state_size: got 0, expected at least 1"),
        ("state_size = 3", "state_size = true", "spec.state_size: got True"),
        ("state_size = 3", "state_size =", "not valid TOML"),
        ('"discrete"', '"discreet"', "did you mean 'discrete'"),
    ],
)
def test_a_wrong_set_toml_says_what_is_wrong(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    dataset_of(tmp_path / "dataset")
    path = tmp_path / "dataset" / "dataset.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DatasetError, match=message) as caught:
        PreferenceDataset(tmp_path / "dataset")
    assert str(path) in str(caught.value)


def record() -> EpisodeRecord:
    """Return an episode of 2 steps that fits the plain scripted environment."""
    return EpisodeRecord(
        obs=np.zeros((2, 2, 4)),
        state=np.zeros((2, 3)),
        actions=np.array([[0, 1], [2, 2]]),
        final_obs=np.zeros((2, 4)),
        final_state=np.zeros(3),
        episode_return=1.0,
        terminated=True,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros((2, 3, 4))}, r"obs has shape \(2, 3, 4\), expected \(2, 2, 4\)"),
        (
            {"obs": np.zeros((2, 4))},
            r"obs has shape \(2, 4\), expected \(2, 2, 4\), an entry for every agent of the team;",
        ),
        (
            {"actions": np.zeros((2, 1), np.int64)},
            r"actions has shape \(2, 1\), .* one agent was shown, record what the others saw and",
        ),
        ({"final_obs": np.zeros((1, 4))}, r"final_obs has shape \(1, 4\), .* every agent of the"),
        ({"final_state": np.zeros(4)}, r"final_state has shape \(4,\), expected \(3,\)"),
        ({"actions": np.zeros((2, 2))}, "actions has dtype float64, expected int64"),
        ({"actions": np.full((2, 2), 3)}, "actions are from 3 to 3, expected 0 to 2"),
        ({"state": np.full((2, 3), np.nan)}, "state holds NaN or infinity"),
        ({"final_obs": np.full((2, 4), 1e300)}, "final_obs holds NaN or infinity"),
        (
            {"alive": np.ones((2, 2), bool)},
            "has alive, but dataset.toml says that scripted has none",
        ),
        ({"episode_return": np.inf}, "return is inf, expected a finite number"),
        ({"state": np.zeros((0, 3))}, r"state has 0 steps, expected 1 to 7 \(spec.max_steps\)"),
        ({"state": np.zeros((8, 3))}, "state has 8 steps, expected 1 to 7"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = PreferenceDataset.create(tmp_path / "dataset", replay_of("plain")[1])
    with pytest.raises(DatasetError, match=message):
        made.add_episode(dataclasses.replace(record(), **changes))
    assert made.numbers() == []


def test_an_environment_with_deaths_needs_to_know_who_lived(tmp_path: Path) -> None:
    made = PreferenceDataset.create(tmp_path / "dataset", replay_of("deaths, masks and facts")[1])
    facts = np.zeros((2, 2), np.float32)
    with pytest.raises(DatasetError, match=r"alive is missing; scripted needs shape \(2, 2\)"):
        made.add_episode(dataclasses.replace(record(), step_facts=facts))
    with pytest.raises(DatasetError, match="step_facts is missing"):
        made.add_episode(record())


def test_damaged_episodes_are_named(tmp_path: Path) -> None:
    made = PreferenceDataset.create(tmp_path / "dataset", replay_of("plain")[1])
    path = episode_path(made.folder, made.add_episode(record()))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"000000\.npz is damaged .*delete it"):
        made.archive()
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    with pytest.raises(DatasetError, match=r"000000\.npz"):
        made.archive()
    np.savez(path, obs=np.zeros(3))
    with pytest.raises(DatasetError, match="has no state, actions, final_obs, final_state, return"):
        made.archive()
    np.savez(path, obs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DatasetError, match="expected an array of numbers or truth values"):
        made.archive()
    path.unlink()
    with pytest.raises(DatasetError, match="has no episodes; add some"):
        made.archive()
    with pytest.raises(DatasetError, match="the dataset has no episode 0"):
        made.episode(0)


def test_foreign_data_comes_in_and_a_kill_leaves_no_half_episode(tmp_path: Path) -> None:
    made = PreferenceDataset.create(
        tmp_path / "dataset", replay_of("plain")[1], environment="my_envs:keys", options={"size": 3}
    )
    numbers = [made.add_episode(record()) for _ in range(3)]
    made.answers.extend(
        Answer(first=a, second=b, label=1.0, source="person:ann", at=now())
        for a, b in ((0, 1), (1, 2))
    )
    made.answers.append(Answer(first=0, second=2, label=None, source="person:ann", at=now()))
    episode_path(made.folder, 3).with_suffix(".npz.tmp").write_bytes(b"half")
    opened = PreferenceDataset(tmp_path / "dataset")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [a.label for a in opened.answers.answers()] == [1.0, 1.0, None]
    assert opened.numbers() == numbers == [0, 1, 2]
    assert opened.manifest.environment.options == {"size": 3}


def test_standing_answers_come_oldest_first_without_withdrawn_ones() -> None:
    buffer = PreferenceBuffer(4, torch.device("cpu"))
    first, second = torch.arange(6), torch.arange(1, 7)
    buffer.add(first, second, torch.tensor([1.0, 0.0, 1.0, 0.5, 0.0, 0.25]))
    # The ring of four keeps (2, 3) to (5, 6); (3, 4) is withdrawn.
    buffer.correct(torch.tensor([3]), torch.tensor([4]), torch.tensor([torch.nan]))
    found = [part.tolist() for part in buffer.standing()]
    assert found == [[2, 4, 5], [3, 5, 6], [1.0, 0.0, 0.25]]
    few = PreferenceBuffer(4, torch.device("cpu"))
    assert [part.tolist() for part in few.standing()] == [[], [], []]
    few.add(first[:2], second[:2], torch.tensor([1.0, 0.0]))
    assert [part.tolist() for part in few.standing()] == [[0, 1], [1, 2], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "rule:return"),
        ({"labeller": "facts", "facts": ("won", "time-")}, "rule:facts won time-"),
        ({"tie_break": ("won",)}, "rule:return, ties by won"),
        ({"teacher": TeacherConfig(mistakes=0.1)}, "rule:return, noisy"),
        ({"labeller": "llm", "llm": LlmConfig(model="small")}, "llm:small"),
        ({"labeller": "model", "model": ModelConfig(run="runs/a")}, "model:runs/a"),
        ({"labeller": "my_labels:f"}, "own:my_labels:f"),
        ({"labeller": "people"}, "people"),
    ],
)
def test_a_source_is_named_after_its_labeller(settings: dict[str, Any], name: str) -> None:
    assert source_name(PreferenceConfig(**settings)) == name
