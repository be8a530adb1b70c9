"""From a run to a dataset, to a fitted reward, to the next run, on the command line."""

import dataclasses
import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import marl
from marl.config.io import load_config
from marl.data.replay import in_order
from marl.nn.optimizer import Optimizer
from marl.preferences.dataset import Answer, PreferenceDataset, now
from marl.rewards.io import load_reward
from marl.rewards.scoring import score_episodes
from marl.trainer import Trainer
from tests.command_line import run

QUICK = [
    "--env.name=particles/nav_3",
    "--env.num-envs=8",
    "--learner.rollout-steps=25",
    "--learner.epochs=1",
    "--preferences.replay-steps=1000",
    "--total-steps=1000",
    "--threads=1",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run of a free labeller, its dataset, and a reward fitted to that."""
    folder = tmp_path_factory.mktemp("work")
    assert run("train", *QUICK, "--run-dir", f"{folder}/run") == 0
    assert run("export", f"{folder}/run", f"{folder}/dataset", "--pairs", "80") == 0
    assert run("fit-reward", f"{folder}/dataset", "--steps", "30", "--out", f"{folder}/fit") == 0
    return folder


def test_an_export_says_what_a_run_no_longer_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--preferences.replay-episodes=16", "--run-dir", f"{tmp_path}/run"]
    assert run("train", *QUICK, *few) == 0
    capsys.readouterr()
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/all", "--pairs", "4") == 0
    told = capsys.readouterr().out
    assert "16 episodes (the newest of 40), " in told
    assert "preferences.replay_steps and preferences.replay_episodes limit what" in told
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/some", "--episodes", "4") == 0
    told = capsys.readouterr().out
    assert "4 episodes (the newest of 40), " in told
    assert "preferences.replay_steps" not in told


def test_an_exported_set_holds_what_the_run_holds(folder: Path) -> None:
    exported = PreferenceDataset(folder / "dataset")
    trainer = Trainer(load_config(folder / "run" / "config.toml"))
    for _ in range(5):
        trainer.iterate()
    assert trainer.feedback is not None
    replay = trainer.feedback.replay
    archive = exported.archive()
    for held_out in (False, True):
        numbers = replay.available(held_out=held_out)
        assert torch.equal(archive.available(held_out=held_out), numbers)
        mine, theirs = (s.episodes(numbers).transitions() for s in (archive, replay))
        for field in dataclasses.fields(mine):
            one, other = getattr(mine, field.name), getattr(theirs, field.name)
            assert (one is other is None) or torch.equal(one, other), field.name
    answers = exported.answers.answers()
    assert len({frozenset((a.first, a.second)) for a in answers}) == len(answers) > 70
    for answer in answers:
        first, second = (exported.episode(n).episode_return for n in (answer.first, answer.second))
        assert answer.label == (0.5 if first == second else float(first > second))
        assert (answer.first % 8 == 7) == (answer.second % 8 == 7)
    assert {a.source for a in answers} == {"rule:return"}
    assert exported.manifest.origin["steps"] == 1000
    assert not list(folder.glob(".*.partial"))


def test_a_fit_reports_what_it_found(folder: Path) -> None:
    report = json.loads((folder / "fit" / "report.json").read_text())
    assert report["sources"] == {"rule:return": 80}
    assert report["steps"] == 30
    assert report["train"]["pairs"] + report["held_out"]["pairs"] == 80
    held_out = report["held_out"]
    table = held_out["reliability"]
    assert sum(row["pairs"] for row in table) == held_out["pairs"] - held_out["ties"]
    right = sum(row["pairs"] * row["agreement"] for row in table if row["pairs"])
    assert right / held_out["pairs"] == pytest.approx(held_out["accuracy"], abs=1e-6)
    error = sum(
        row["pairs"] * abs(row["agreement"] - row["confidence"]) for row in table if row["pairs"]
    )
    assert error / held_out["pairs"] == pytest.approx(held_out["expected_calibration_error"])
    assert (folder / "fit" / "calibration.png").stat().st_size > 1000


@pytest.mark.parametrize("command", ["fit-reward", "imitate"])
def test_a_fit_that_is_stopped_keeps_what_it_has_learned(
    command: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    minimize, taken = Optimizer.minimize, 0

    def minimize_and_interrupt(self: Optimizer, loss: torch.Tensor) -> None:
        nonlocal taken
        taken += 1
        if taken == 15:
            signal.raise_signal(signal.SIGINT)
        minimize(self, loss)

    monkeypatch.setattr(Optimizer, "minimize", minimize_and_interrupt)
    handler = signal.getsignal(signal.SIGINT)
    status = run(command, f"{folder}/dataset", "--steps=1000", "--out", f"{tmp_path}/fit")
    assert status == 128 + signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is handler
    assert "stopped early; what was fitted is saved" in capsys.readouterr().out
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    steps = report["steps"] if command == "fit-reward" else report["policy"]["steps"]
    assert steps == (20 if command == "fit-reward" else 15)  # whole fits, and single steps
    spec = PreferenceDataset(folder / "dataset").spec
    if command == "fit-reward":
        load_reward(tmp_path / "fit", spec, "here")
    else:
        assert marl.load(tmp_path / "fit").spec.num_agents == spec.num_agents


def test_python_finds_the_same_as_the_command_line(folder: Path) -> None:
    report = marl.fit_reward(folder / "dataset", steps=30)
    expected = json.loads((folder / "fit" / "report.json").read_text())
    assert json.loads(json.dumps(report.to_json())) == expected


@pytest.mark.parametrize("source", ["run", "fit"])
def test_a_model_labels_for_a_new_seed_and_the_run_resumes_exactly(
    folder: Path, source: str, tmp_path: Path
) -> None:
    settings = [
        "--seed=4",
        "--preferences.labeller=model",
        f"--preferences.model.run={folder}/{source}",
    ]
    assert run("train", *QUICK, *settings, "--run-dir", f"{tmp_path}/whole") == 0
    config = load_config(tmp_path / "whole" / "config.toml")
    iterations = marl.train(config, tmp_path / "cut")
    for _ in range(3):
        next(iterations)
    iterations.close()
    assert run("resume", f"{tmp_path}/cut") == 0
    columns = (tmp_path / "whole" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert "labeller/length_constant" in columns
    whole, cut = (
        np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True)
        for name in ("whole", "cut")
    )
    for name in whole.dtype.names:
        if not name.startswith(("time", "memory")):
            np.testing.assert_array_equal(whole[name], cut[name], err_msg=name)


def test_kept_answers_are_exported_as_they_are(tmp_path: Path) -> None:
    asked = ["--preferences.queries-per-iteration=4", "--preferences.teacher.skip-below=-0.5"]
    assert run("train", *QUICK, *asked, "--run-dir", f"{tmp_path}/run") == 0
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/dataset", "--pairs", "500") == 0
    answers = PreferenceDataset(tmp_path / "dataset").answers.answers()
    assert 5 < len(answers) <= 20
    assert {a.source for a in answers} == {"rule:return, noisy"}
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/some", "--episodes", "9") == 0
    newest = PreferenceDataset(tmp_path / "some")
    assert newest.numbers() == PreferenceDataset(tmp_path / "dataset").numbers()[-9:]
    assert all({a.first, a.second} <= set(newest.numbers()) for a in newest.answers.answers())
    arguments = ["--labeller", "outcome", "--pairs", "5"]
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/facts", *arguments) == 1
    arguments = ["--labeller", "return", "--pairs", "16"]
    assert run("export", f"{tmp_path}/run", f"{tmp_path}/fresh", *arguments) == 0
    fresh = PreferenceDataset(tmp_path / "fresh").answers.answers()
    assert (len(fresh), {a.source for a in fresh}) == (16, {"rule:return"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "{0}/nowhere", "{0}/x"], "holds no checkpoint (step_*.ckpt); is it a run's"),
        (["export", "{0}/fit", "{0}/x"], "holds a fitted reward model; only a run has episodes"),
        (["export", "{0}/run", "{0}/dataset"], "already exists and is not empty; choose another"),
        (["fit-reward", "{0}/run"], "is no preference dataset: it has no dataset.toml"),
        (
            ["fit-reward", "{0}/dataset", "--model", "imapp"],
            "expected one of imap, slf, ipl, sl, dpo, omapl, or",
        ),
        (["fit-reward", "{0}/dataset", "--model", "nothing_here:M"], "no module 'nothing_here'"),
        (["fit-reward", "{0}/dataset", "--out", "{0}/fit"], "choose another --out"),
        (
            ["fit-reward", "{0}/dataset", "--source", "person:*"],
            "by 'person:*', 0 are there to train on, and none of them prefers an episode",
        ),
        (["fit-reward", "{0}/dataset", "--steps", "0"], "--steps: got 0, expected a number"),
        (
            ["train", "--preferences.labeller=model", "--run-dir={0}/new"],
            "preferences.model.run: got '', but pairs are judged by model",
        ),
        (
            [
                "train",
                "--preferences.labeller=model",
                "--preferences.model.run={0}/dataset",
                "--run-dir={0}/new",
            ],
            "is neither a run's folder nor one of `marl fit-reward`",
        ),
        (
            [
                "train",
                "--preferences.labeller=model",
                "--preferences.model.run={0}/run",
                "--env.name=particles/nav_4",
                "--run-dir={0}/new",
            ],
            "was learned on particles/nav_3 (agents: 3, state features: 18), this run is on "
            "particles/nav_4 (agents: 4, state features: 24)",
        ),
    ],
)
def test_a_wrong_command_says_what_to_do(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    before = sorted(folder.rglob("*"))
    is_wrong_flag = message.startswith(("--", "preferences.model.run: got"))
    status = run(*(argument.format(folder) for argument in arguments))
    assert status == (2 if is_wrong_flag else 1)
    assert message in capfd.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_a_set_of_peoples_answers_says_what_was_left_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("export", f"{folder}/run", f"{tmp_path}/dataset", "--pairs", "0") == 0
    mine = PreferenceDataset(tmp_path / "dataset")
    first, second, *_ = mine.numbers()
    for label, other in ((1.0, second), (None, second), (0.0, 10_000)):
        answer = Answer(first=first, second=other, label=label, source="person:ann", at=now())
        mine.answers.append(answer)
    out = f"--out={tmp_path}/fit"
    assert run("fit-reward", f"{tmp_path}/dataset", "--steps=5", "--model=sl", out) == 0
    shown = capsys.readouterr().out
    assert "left out: 1 answers prefer nothing" in shown
    assert "left out: 1 answers are about episodes that are not there" in shown
    assert "no decided pair was held out; a smaller --holdout-every holds out more" in shown
    report = json.loads((tmp_path / "fit" / "report.json").read_text())
    assert report["held_out"]["accuracy"] is None
    (tmp_path / "dataset" / "answers.jsonl").write_text(
        "{\n" + (tmp_path / "dataset" / "answers.jsonl").read_text()
    )
    assert run("fit-reward", f"{tmp_path}/dataset", "--steps=5", f"{out}2") == 1
    with pytest.warns(UserWarning, match="line 1: skipped"):
        assert (
            run("fit-reward", f"{tmp_path}/dataset", "--steps=5", f"{out}2", "--skip-damaged") == 0
        )


def test_a_recurrent_model_is_fitted_and_labels(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "recurrent.toml").write_text('[reward]\nrecurrence = "gru"\n')
    out = f"{tmp_path}/fit"
    settings = ["--config", f"{tmp_path}/recurrent.toml", "--steps", "30", "--out", out]
    assert run("fit-reward", f"{folder}/dataset", *settings) == 0
    archive, spec = (
        PreferenceDataset(folder / "dataset").archive(),
        PreferenceDataset(folder / "dataset").spec,
    )
    learner = load_reward(tmp_path / "fit", spec, "here")
    episodes = archive.episodes(archive.numbers)
    scores = score_episodes(learner, episodes)
    # What an episode is worth depends on the order of its steps, not on the other episodes.
    alone = torch.cat([score_episodes(learner, episodes.rows(torch.tensor([i]))) for i in range(3)])
    torch.testing.assert_close(alone, scores[:3])
    mixed = archive.steps(archive.numbers[:3], torch.arange(24, -1, -1).expand(3, 25))
    every = torch.arange(25).expand(3, 25)
    turned = learner.scores(in_order(mixed, every, every >= 0), torch.ones(3, 25), every[:, -1])
    assert not torch.allclose(turned, scores[:3])
    labels = ["--preferences.labeller=model", f"--preferences.model.run={out}"]
    assert run("train", *QUICK, *labels, "--run-dir", f"{tmp_path}/run") == 0
