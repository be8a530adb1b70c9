"""Policies from datasets alone: fitted, played, filmed, trained on from; and what is refused."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import marl
from marl.config import NetworkConfig, RewardConfig
from marl.learners.actors import GaussianActor
from marl.preferences.dataset import PreferenceDataset
from marl.rewards.io import load_reward
from marl.rewards.ratio import UNIFORM_LOG_STD, PolicyRatio, UniformPolicy
from tests.command_line import run
from tests.played import name_the_cue, play_episodes, played

SETTINGS = """
[network]
hidden_sizes = [16]

[reward]
learning_rate = 1e-2
hidden_sizes = [16]
mixer_hidden = 16
"""
QUICK = [
    "--env.name=probe/local_credit",
    "--env.num-envs=8",
    "--learner.rollout-steps=16",
    "--network.hidden-sizes=16",
    "--preferences.replay-steps=1600",
    "--total-steps=128",
    "--threads=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a dataset of random play, and a policy fitted to its preferences."""
    folder = tmp_path_factory.mktemp("offline")
    (folder / "small.toml").write_text(SETTINGS)
    played(folder / "data", "probe/local_credit")
    assert fit(folder, "data", "dpo") == 0
    return folder


def fit(folder: Path, data: str, name: str, *more: str) -> int:
    """Return the status of a fit of model `name`, up to a dot, written to a folder of that name."""
    model, out = f"--model={name.partition('.')[0]}", f"--out={folder}/{name}"
    small = f"--config={folder}/small.toml"
    return run("fit-reward", f"{folder}/{data}", model, "--steps=60", small, out, *more)


def greedy(fitted: Path) -> float:
    """Return the mean return of the likeliest actions: 4 is random in these tasks of 8 steps."""
    return marl.evaluate(marl.load(fitted), greedy=True, episodes=32, seed=3).mean


def test_preferences_alone_make_a_policy(folder: Path) -> None:
    report = json.loads((folder / "dpo" / "report.json").read_text())
    assert report["policy"]["reference"] == "uniform"
    assert 0 < report["policy"]["kept"] <= report["policy"]["steps"] <= 60
    assert report["policy"]["loss"] == pytest.approx(report["held_out"]["loss"])
    assert report["policy"]["loss"] < 0.8 * report["policy"]["first_loss"]
    assert report["policy"]["entropy"] < 0.6  # log 2 at first
    assert greedy(folder / "dpo") > 7.0  # optimum 8, random 4


def test_it_is_played_filmed_and_trained_on_from(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = folder / "dpo"
    before = sorted(fitted.rglob("*"))
    out = f"--out={tmp_path}/evaluation.json"
    assert run("evaluate", fitted, "--episodes=8", "--num-envs=4", out) == 0
    assert "probe/local_credit fitted by dpo in" in capsys.readouterr().out
    film = ["--max-frames=3", "--width=320", f"--out={tmp_path}/film.gif"]
    assert run("watch", fitted, *film) == 0
    assert "has learned no reward" not in capsys.readouterr().out  # the ratio is shown
    assert sorted(fitted.rglob("*")) == before
    assert run("train", *QUICK, f"--init={fitted}", f"--run-dir={tmp_path}/run") == 0
    labels = ["--preferences.labeller=model", f"--preferences.model.run={fitted}"]
    assert run("train", *QUICK, *labels, f"--run-dir={tmp_path}/labelled") == 0
    policy = marl.load(fitted)
    assert policy.steps == 0
    assert policy.act([[1.0, 0.0]] * 4, greedy=True).tolist() == [0] * 4


def test_the_reward_beside_it_is_its_log_ratio(folder: Path) -> None:
    policy = marl.load(folder / "dpo")
    learner = load_reward(folder / "dpo", policy.spec, "here")
    assert isinstance(learner.model, PolicyRatio)
    assert isinstance(learner.model.reference, UniformPolicy)
    archive = PreferenceDataset(folder / "data").archive()
    steps = archive.episodes(archive.numbers[:3]).transitions()
    mine = policy.actor.log_prob(steps.obs, steps.actions)
    expected = 0.1 * (mine + torch.tensor(2.0).log())
    torch.testing.assert_close(learner.model(steps).local, expected)


def test_a_reference_is_a_fit_a_run_or_cloned(folder: Path, tmp_path: Path) -> None:
    assert fit(folder, "data", "dpo.again", f"--reference={folder}/dpo") == 0
    report = json.loads((folder / "dpo.again" / "report.json").read_text())
    # The fit begins where the other has ended: its log-ratio to itself is 0.
    assert report["policy"]["first_loss"] == pytest.approx(math.log(2.0), abs=1e-6)
    learner = load_reward(folder / "dpo.again", marl.load(folder / "dpo").spec, "here")
    theirs = marl.load(folder / "dpo").actor.state_dict()
    mine = learner.model.reference.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert run("train", *QUICK, f"--run-dir={tmp_path}/run") == 0
    assert fit(folder, "data", "dpo.run", f"--reference={tmp_path}/run") == 0
    assert fit(folder, "data", "dpo.cloned", "--reference=cloned") == 0
    assert greedy(folder / "dpo.cloned") > 7.0


def test_a_factored_reward_weighs_what_is_cloned(folder: Path) -> None:
    assert fit(folder, "data", "omapl") == 0
    report = json.loads((folder / "omapl" / "report.json").read_text())
    assert report["policy"]["loss"] < report["policy"]["first_loss"]
    assert greedy(folder / "omapl") > 6.5
    policy = marl.load(folder / "omapl")
    # All actions alike sample 4. Weights that are nearly 1, in whatever unit q is, leave them so.
    assert marl.evaluate(policy, greedy=False, episodes=32, seed=3).mean > 5.5
    spec = marl.load(folder / "omapl").spec
    assert load_reward(folder / "omapl", spec, "here").name == "factored"


@pytest.mark.parametrize(
    ("name", "recurrence"), [("dying", "gru"), ("masked", "none"), ("continuous_match", "gru")]
)
def test_deaths_masks_gaussians_and_hidden_states(
    name: str, recurrence: Any, tmp_path: Path
) -> None:
    """Better than random after a few steps; the fit is loaded as it was."""
    data = played(tmp_path / "data", f"probe/{name}", episodes=48, pairs=150)
    out = tmp_path / "fit"
    report = marl.fit_reward(
        data,
        model="dpo",
        steps=40,
        reward=RewardConfig(learning_rate=2e-2),
        network=NetworkConfig(hidden_sizes=(16, 16), recurrence=recurrence),
        out=out,
    )
    assert report.policy is not None
    random = {"dying": 2.25, "masked": 8 / 3, "continuous_match": -16 / 3}[name]
    assert greedy(out) > random
    actor = marl.load(out).actor
    if isinstance(actor, GaussianActor):
        assert torch.equal(actor.log_std, torch.full_like(actor.log_std, UNIFORM_LOG_STD))


def shown(folder: Path, count: int) -> PreferenceDataset:
    """Return a dataset of demonstrations, and one episode that is none."""
    spec, records = play_episodes("probe/local_credit", count, name_the_cue, demonstration=True)
    made = PreferenceDataset.create(folder, spec, environment="probe/local_credit")
    for record in records:
        made.add_episode(record)
    made.add_episode(dataclasses.replace(records[0], demonstration=False))
    return made


@pytest.mark.parametrize("objective", ["nll", "chi2", "hellinger"])
def test_demonstrations_are_imitated(
    objective: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(tmp_path / "data", 16)
    out, small = tmp_path / "fit", f"--config={folder}/small.toml"
    flags = [f"--objective={objective}", "--steps=60", "--learning-rate=0.02", small]
    assert run("imitate", tmp_path / "data", *flags, f"--out={out}") == 0
    told = capsys.readouterr().out
    assert f"{objective} on probe/local_credit: 16 demonstrations, of which 2 only measure" in told
    report = json.loads((out / "report.json").read_text())
    assert report["policy"]["entropy"] < 0.4
    assert f"entropy {report['policy']['entropy']:.2f} nats an agent" in told
    words = f"by imitation ({objective}) in {report['policy']['kept']} gradient steps"
    assert marl.load(out).trained == words
    assert greedy(out) > 7.5


def test_a_run_is_imitated_and_python_finds_the_same(folder: Path, tmp_path: Path) -> None:
    assert run("train", *QUICK, "--algorithm=dpo", f"--run-dir={tmp_path}/run") == 0
    out, reference = tmp_path / "fit", f"--reference={folder}/dpo"
    assert run("imitate", tmp_path / "run", "--steps=5", reference, f"--out={out}") == 0
    report = marl.imitate(tmp_path / "run", steps=5, reference=str(folder / "dpo"))
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report.to_json()))
    assert not report.are_marked
    assert report.episodes > 8


def test_few_episodes_are_all_trained_on(tmp_path: Path) -> None:
    report = marl.imitate(shown(tmp_path / "data", 5), steps=5, out=tmp_path / "fit")
    assert (report.episodes, report.held_out) == (5, 0)
    assert report.policy.kept == 5
    assert report.to_json()["policy"]["loss"] is None


def test_a_reward_tells_demonstrations_from_other_episodes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = shown(tmp_path / "data", 16)
    for number in range(24):
        made.add_episode(PreferenceDataset(folder / "data").episode(number))
    flags = ["--demonstrations", f"--config={folder}/small.toml", "--steps=60"]
    out = tmp_path / "fit"
    assert run("fit-reward", tmp_path / "data", *flags, "--model=slf", f"--out={out}") == 0
    report = json.loads((out / "report.json").read_text())
    assert report["held_out"]["accuracy"] > 0.9
    assert (report["sources"], report["demonstrations"]) == ({}, 16)
    words = "slf on probe/local_credit: 41 episodes, 16 of them demonstrations"
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["fit-reward", "{0}/data", "--model=dpo", "--reference=nowhere"],
            "--reference: got 'nowhere', expected uniform, cloned, or the folder of a run or of a",
        ),
        (
            ["fit-reward", "{0}/data", "--model=sl", "--reference=cloned"],
            "reference: got 'cloned', but model sl is fitted against none; leave it out or fit",
        ),
        (
            ["fit-reward", "{0}/data", "--model=dpo", "--demonstrations"],
            "demonstrations: model dpo is fitted to preferences; `marl imitate` fits a policy",
        ),
        (["fit-reward", "{0}/data", "--demonstrations"], "no episode to train on is marked as a"),
        (
            ["fit-reward", "{0}/other", "--model=dpo", "--reference={0}/dpo"],
            "--reference: the policy of {0}/dpo was trained on probe/local_credit (agents: 4, ",
        ),
        (["imitate", "{0}/data", "--reference=cloned"], "reference: got 'cloned', which is what"),
        (["imitate", "{0}/data", "--objective=kl"], "--objective: got 'kl', expected one of 'nll'"),
        (["imitate", "{0}/dpo"], "a fit keeps no episodes; name a dataset, or a run that learns"),
        (["imitate", "{0}"], "is no preference dataset: it has no dataset.toml"),
        (["resume", "{0}/dpo"], "is not a run folder: it has no config.toml"),
        (["evaluate", "{0}/sl"], "holds a fitted reward model and no policy; `marl fit-reward --m"),
        (["evaluate", "{0}/data"], "is not a run folder: it has no config.toml"),
        (["export", "{0}/dpo", "{0}/x"], "only a run has episodes to export"),
    ],
)
def test_what_cannot_be_is_one_line(
    arguments: list[str],
    words: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if not (folder / "other").exists():
        played(folder / "other", "probe/coordination", episodes=8, pairs=20)
        assert fit(folder, "data", "sl") == 0
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(folder)
    capfd.readouterr()
    assert run(*(argument.format(folder) for argument in arguments)) in (1, 2)
    assert words.format(folder) in capfd.readouterr().err


def test_episodes_of_one_agent_are_no_teams(tmp_path: Path) -> None:
    spec, records = play_episodes("probe/local_credit", 2, name_the_cue)
    alone = dataclasses.replace(spec, obs_sizes=(2,), action_sizes=(2,))
    made = PreferenceDataset.create(tmp_path / "data", alone)
    for one in records:
        arrays = {n: getattr(one, n)[:, :1] for n in ("obs", "actions")}
        made.add_episode(dataclasses.replace(one, **arrays, final_obs=one.final_obs[:1]))
    with pytest.raises(marl.ConfigError, match=r"data holds episodes of one agent, and a team"):
        marl.imitate(made)


def test_the_code_of_a_strangers_environment_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    """It is named by the dataset alone: fitting to it is no reason to import it."""
    manifest = (folder / "data" / "dataset.toml").read_text()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.toml").write_text(
        manifest.replace('"probe/local_credit"', '"strange:Env"', 1)
    )
    for name in ("episodes", "answers.jsonl"):
        (tmp_path / "data" / name).symlink_to(folder / "data" / name)
    (tmp_path / "small.toml").write_text(SETTINGS)
    assert fit(tmp_path, "data", "dpo") == 0
    with pytest.raises(marl.ConfigError, match="names code that would be imported and run"):
        marl.evaluate(marl.load(tmp_path / "dpo"), greedy=True, episodes=1, seed=0)
