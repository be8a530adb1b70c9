"""`marl labels RUN`: a run's answers audited, as a user would."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import run
from tests.llm_server import POSITION_BIAS, ModelServer

SMALL = [
    "--env.name=particles/nav_3",
    "--env.num-envs=4",
    "--learner.rollout-steps=25",
    "--preferences.replay-steps=2000",
    "--total-steps=600",
]
MINE = """
def shorter_way(pairs):
    return (pairs.first.returns > pairs.second.returns).float() * 0.7 + 0.15
"""


def with_model(server: ModelServer, cache: Path, *more: str) -> list[str]:
    """Return the flags of a run whose labeller is the stand-in server."""
    return [
        *SMALL,
        "--preferences.labeller=llm",
        "--preferences.queries-per-iteration=4",
        f"--preferences.llm.base-url={server.base_url}",
        "--preferences.llm.model=stand-in",
        "--preferences.llm.ask=pairwise",
        "--preferences.llm.prompt-price=2",
        "--preferences.llm.reply-price=8",
        f"--preferences.llm.cache={cache}",
        *more,
    ]


def figures(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> dict[str, Any]:
    """Return what ``marl labels ... --json`` prints."""
    capsys.readouterr()
    assert run("labels", *arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_language_model_is_audited_by_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-mine")
    cache, first, second = tmp_path / "s.sqlite", tmp_path / "first", tmp_path / "second"
    with ModelServer() as server:
        flags = with_model(server, cache, "--preferences.llm.margin=0.01")
        assert run("train", *flags, "--run-dir", first) == 0
        asked = len(server.asked)
        assert run("train", *flags, "--seed=5", "--run-dir", second) == 0
    one, two = figures(capsys, first), figures(capsys, second)
    (judge,) = one["asked"]
    with closing(sqlite3.connect(cache)) as database:
        rows = database.execute("SELECT * FROM labels").fetchall()
    assert judge["pairs"] + two["asked"][0]["pairs"] == len(rows)
    # 4 an iteration, fewer at first, while there are few episodes to make pairs of.
    assert judge["pairs"] == one["kept"]["asked"] == 20
    assert judge["answered"] + sum(judge["unanswered"].values()) == 20
    assert judge["prompt"].startswith("pairwise@1:")
    # The stand-in says "A" unless the other episode is better by more than its bias, which this
    # environment never reaches, so that both orders say "A".
    assert POSITION_BIAS == 3.0
    assert judge["flips"]["of"] == 20
    assert judge["firsts"]["share"] > 0.9
    assert judge["mass"] == pytest.approx(0.9)
    # Every request but those for the list of models is a call: 101 tokens, 2 and 8 a million.
    cost = judge["cost"]
    assert cost["calls"] == cost["answered"] == asked
    assert cost["prompt_tokens"] == 100 * asked
    assert cost["money"] == pytest.approx(asked * (100 * 2 + 8) / 1e6)
    assert 0.0 < cost["seconds_median"] <= cost["seconds_p95"] < 10.0
    assert one["kept"]["answered"] == one["kept"]["pairs"] == judge["answered"]
    assert one["kept"]["agreement"] == judge["agreement"]
    assert judge["agreement"]["of"] == judge["answered"]
    assert one["kept"]["learned"]["of"] == judge["answered"]
    assert not (first / "labels.html").exists()

    assert run("labels", first) == 0
    shown = capsys.readouterr().out
    for part in ("stand-in", "says A", "order changes the answer", "the learned reward agrees"):
        assert part in shown
    html = (first / "labels.html").read_text()
    assert "mean distance of the agents" in html
    assert "sk-secret" not in shown + html + json.dumps([one, two])
    elsewhere = tmp_path / "elsewhere.html"
    assert run("labels", first, "--out", elsewhere, "--most", "0") == 0
    assert elsewhere.stat().st_size < len(html)


def test_a_resumed_run_keeps_its_identity_and_its_pairs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, cache = tmp_path / "run", tmp_path / "s.sqlite"
    with ModelServer() as server:
        flags = with_model(server, cache, "--checkpoint-every=300")
        assert run("train", *flags, "--run-dir", folder) == 0
        before = figures(capsys, folder)
        newest = max((folder / "checkpoints").glob("*.ckpt"))
        newest.unlink()
        asked = len(server.asked)
        assert run("resume", folder) == 0
        assert len(server.asked) == asked
    assert figures(capsys, folder) == before
    # Moved, its cache too: the run is still known by its identity.
    shutil.move(folder, tmp_path / "moved")
    shutil.move(cache, tmp_path / "moved.sqlite")
    assert run("labels", tmp_path / "moved") == 1
    message = " ".join(capsys.readouterr().err.split())
    assert "there is no such file; name it by --cache" in message
    after = figures(capsys, tmp_path / "moved", "--cache", tmp_path / "moved.sqlite")
    assert after["asked"] == before["asked"]


@pytest.mark.parametrize("queries", [0, 3])
def test_any_other_labeller(
    queries: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "my_audited_labels.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    flags = [*SMALL, f"--preferences.queries-per-iteration={queries}"]
    mine = "--preferences.labeller=my_audited_labels:shorter_way"
    assert run("train", *flags, mine, "--run-dir", tmp_path / "mine") == 0
    found = figures(capsys, tmp_path / "mine")
    assert found["asked"] == []
    if queries:
        assert found["kept"]["pairs"] == found["kept"]["asked"] > 10
    else:
        assert found["kept"]["asked"] > 100
        assert found["kept"]["pairs"] == 0
        assert any("--ask-again" in note for note in found["notes"])
        found = figures(capsys, tmp_path / "mine", "--ask-again")
        assert found["kept"]["is_asked_now"]
        assert found["kept"]["pairs"] == 10  # of the 21 episodes that are not held out
    kept = found["kept"]["agreement"]
    assert kept["part"] == kept["of"] == found["kept"]["pairs"]
    # Always 0.85 sure and always right: one bin, 0.15 off.
    (only,) = found["reliability"]
    assert only["right"]["share"] == 1.0
    assert found["calibration_error"] == pytest.approx(0.15, abs=1e-6)


def test_a_rule_with_mistakes_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--preferences.teacher.mistakes=1.0", "--run-dir", str(tmp_path / "run")]
    assert run("train", *flags) == 0
    found = figures(capsys, tmp_path / "run")
    assert found["kept"]["is_asked_now"]
    assert found["kept"]["agreement"]["of"] == 10
    assert found["kept"]["agreement"]["part"] == 0
    assert len(found["surprises"]["Most sure against the return"]) == 8


def test_what_cannot_be_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def complaint(*arguments: str | Path) -> str:
        assert run("labels", *arguments) == 1
        return " ".join(capsys.readouterr().err.split())

    assert "is not a run folder: it has no config.toml" in complaint(tmp_path)
    plain = tmp_path / "plain"
    assert run("train", *SMALL, "--algorithm=sparse", "--run-dir", plain) == 0
    assert "algorithm 'sparse' learns no reward" in complaint(plain)
    assert run("train", *SMALL, "--run-dir", tmp_path / "run") == 0
    assert "name a file by --out" in complaint(tmp_path / "run", "--out", tmp_path / "no" / "x")
    (tmp_path / "run" / "people").mkdir()
    (tmp_path / "run" / "people" / "answers.jsonl").write_text("?\n?\n")
    assert "answers.jsonl, line 1 of 2" in complaint(tmp_path / "run")
    for damaged in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        damaged.unlink()
    shutil.rmtree(tmp_path / "run" / "people")
    found = figures(capsys, tmp_path / "run")
    assert found["kept"] is None
    assert any("no checkpoint yet" in note for note in found["notes"])


def test_what_a_recurrent_reward_has_learned_is_audited(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It scores whole episodes, whose steps it must be told to read in order."""
    folder = tmp_path / "run"
    flags = ["--reward.recurrence=gru", "--preferences.queries-per-iteration=4"]
    assert run("train", *SMALL, *flags, "--run-dir", folder) == 0
    kept = figures(capsys, folder)["kept"]
    assert kept["learned"]["of"] > 0
