"""`marl sample`: demonstrations of a team, steered or in another environment, and chosen pairs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import marl
from marl.contrast import contrasted
from marl.evaluation import evaluate
from marl.policy import Policy
from marl.preferences.dataset import PreferenceDataset
from marl.preferences.dataset.sampling import played
from marl.utils.checkpoint import list_checkpoints
from tests.command_line import QUICK, run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after 100, 200 and 300 steps."""
    folder = tmp_path_factory.mktemp("sample") / "run"
    flags = ["--checkpoint-every=100", "--learner.epochs=1", "--learner.learning-rate=0.05"]
    assert run("train", *QUICK, *flags, "--run-dir", folder) == 0
    return folder


def returns_of(dataset: PreferenceDataset, numbers: list[int]) -> list[float]:
    return [dataset.episode(number).episode_return for number in numbers]


def evaluated(policy: Policy, count: int, greedy: bool = False) -> Any:
    """Return the returns of episodes, ordered by turn and then by environment, of two of these."""
    played = evaluate(policy, greedy=greedy, episodes=count, seed=3, num_envs=2).returns
    return played.reshape(2, -1).T.flatten()


def test_demonstrations_are_episodes_of_the_steered_team(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early = list_checkpoints(source / "checkpoints")[-1]
    flags = ["--episodes=5", "--num-envs=2", "--seed=3"]
    steered = ["--contrast", early, "--strength", "0.5"]
    assert run("sample", source, tmp_path / "demos", *flags, *steered) == 0
    dataset = PreferenceDataset(tmp_path / "demos")
    assert dataset.numbers() == [0, 1, 2, 3, 4, 5]  # three from each environment
    assert dataset.manifest.environment.name == "particles/nav_3"
    found = returns_of(dataset, dataset.numbers())
    policy = contrasted(marl.load(source), marl.load(early), 0.5)
    np.testing.assert_allclose(found, evaluated(policy, 5), rtol=1e-5)
    assert "strength 0.5" in str(dataset.manifest.origin["policy"])
    assert dataset.answers.answers() == []
    assert f"6 episodes, mean return {np.mean(found):,.2f}" in capsys.readouterr().out
    episode = dataset.episode(0)
    assert episode.obs.shape == (25, 3, 6)
    assert episode.demonstration


def test_a_preference_for_the_worse_team_is_told(source: Path, tmp_path: Path) -> None:
    early = list_checkpoints(source / "checkpoints")[-1]
    teams = sorted((early, source), key=lambda place: evaluate_mean(place))
    flags = ["--episodes=4", "--num-envs=2", "--seed=3"]
    with pytest.warns(UserWarning, match="prefers the team of the lower mean return"):
        assert run("sample", teams[0], tmp_path / "pairs", "--rejected", teams[1], *flags) == 0


def evaluate_mean(place: Path) -> float:
    """Return the mean return of the episodes that `marl sample` plays with these settings."""
    return float(np.mean(evaluated(marl.load(place), 4)))


def test_chosen_episodes_stand_against_those_of_another_team(source: Path, tmp_path: Path) -> None:
    strong = tmp_path / "strong"
    flags = ["--env.name=particles/nav_7", "--total-steps=100", "--run-dir", strong]
    assert run("train", *QUICK, *flags) == 0
    few = ["--episodes=8", "--num-envs=2", "--seed=3", "--greedy"]
    assert run("sample", source, tmp_path / "pairs", *few, "--rejected", strong) == 0
    dataset = PreferenceDataset(tmp_path / "pairs")
    assert dataset.spec.num_agents == 7
    assert dataset.numbers() == list(range(16))
    answers = dataset.answers.answers()
    assert len(answers) == 8
    for index, answer in enumerate(answers):
        assert {answer.first, answer.second} == {index, 8 + index}
        assert answer.label == float(answer.first == index)
        assert answer.source == f"contrast:{source}"
        chosen, rejected = dataset.episode(index), dataset.episode(8 + index)
        assert (chosen.demonstration, rejected.demonstration) == (True, False)
        if index < 2:  # the first of each environment begin with the same seed
            np.testing.assert_array_equal(chosen.obs[0], rejected.obs[0])
    assert len({answer.first < 8 for answer in answers}) == 2
    own = evaluated(marl.load(strong), 8, greedy=True)
    np.testing.assert_allclose(returns_of(dataset, list(range(8, 16))), own, rtol=1e-5)


def test_episodes_can_be_played_in_the_environment_of_a_file(source: Path, tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text('[env]\nname = "particles/nav_4"\n')
    flags = ["--episodes=1", "--config", tmp_path / "large.toml"]
    assert run("sample", source, tmp_path / "large", *flags) == 0
    dataset = PreferenceDataset(tmp_path / "large")
    assert dataset.spec.num_agents == 4
    assert dataset.manifest.environment.name == "particles/nav_4"


def test_short_episodes_are_not_favoured() -> None:
    """Of a battle that the dead leave, each environment gives as many, in the order of turns."""
    from tests.teams import team

    policy = team("probe/dying", 0)
    records = list(played(policy, 9, greedy=False, seed=3, num_envs=3))
    assert len(records) == 9
    lengths = [len(record.obs) for record in records]
    assert len(set(lengths)) > 1
    assert all(record.alive is not None for record in records)
    found = evaluate(policy, greedy=False, episodes=9, seed=3, num_envs=3).returns
    expected = found.reshape(3, -1).T.flatten()
    np.testing.assert_allclose([record.episode_return for record in records], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--strength", "1"], "name the base by --contrast"),
        (["--rejected", "x", "--config", "y"], "the environment is that of the rejected team"),
        (["--config", "other.toml"], "--config: the policy of"),
    ],
)
def test_a_wrong_request_says_what_to_do(
    flags: list[str],
    words: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.toml").write_text('[env]\nname = "particles/spread_3"\n')
    assert run("sample", source, "new", *flags) == 1
    assert words in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_there_is_not_touched(
    source: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    assert run("sample", source, tmp_path, "--episodes=1") == 1
    assert "choose another folder" in capfd.readouterr().err
    assert run("sample", tmp_path / "nowhere", tmp_path / "new") == 1
    assert "nowhere is not a run folder" in capfd.readouterr().err.replace("\n", " ")
