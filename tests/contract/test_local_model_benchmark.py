"""`python -m benchmarks.local_model` against a server of one's own, here the stand-in."""

import re
from pathlib import Path

import pytest

from benchmarks.local_model import main
from tests.llm_server import ModelServer


def test_it_labels_real_episodes_and_writes_the_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "table.md"
    with ModelServer() as server:
        arguments = ["--base-url", server.base_url, "--model", "stand-in", "--out", str(out)]
        arguments += ["--cache", str(tmp_path / "s"), "--pairs", "8", "--whole-pairs", "3"]
        arguments += ["--env", "particles/nav_3", "--task", "Reach the landmarks."]
        main(arguments)
        asked = len(server.asked)
        main(arguments)
        assert len(server.asked) == asked
    questions = [body["messages"][-1]["content"] for body in server.asked]
    assert sum("Reach the landmarks." in question for question in questions) == asked - 2
    text = out.read_text()
    assert "plumbing" not in text  # said of SmolLM2, not of a user's model
    assert server.base_url not in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| particles")]
    assert [row[0] for row in rows] == [
        f"| particles/nav_3, {ask}, {told}"
        for told in ("final", "whole")
        for ask in ("pointwise", "pairwise")
    ]
    for row, count in zip(rows, (8, 8, 3, 3), strict=True):
        answered = re.match(r"(\d+) of (\d+)", row[1])
        assert answered is not None
        assert int(answered[2]) == count
        # Made to answer, the stand-in, which goes by the facts, decides every pair.
        assert re.match(rf"\d+% of {count} \(", row[3])
        assert row[7] == "0.90"
        assert row[8] == "6 of 6"
    # Pointwise: a probe, 12 known episodes and 16 of the pairs; 101 tokens each.
    assert rows[0][9:11] == ["29", "2,929"]
    # The whole descriptions are other texts of the first 3 pairs, the known ones are kept.
    assert rows[2][9:11] == ["6", "606"]
    assert rows[0][5] == rows[2][5] == "-"
    assert re.match(r"\d+% of 8 \(", rows[1][5])
    assert "known answers right" in capsys.readouterr().out


def test_a_server_that_is_not_there() -> None:
    arguments = ["--base-url", "http://127.0.0.1:1/v1", "--model", "m", "--env", "particles/nav_3"]
    with pytest.raises(
        SystemExit, match=r"127\.0\.0\.1:1/v1 answered no question about .*does a server run"
    ):
        main([*arguments, "--pairs", "2"])


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--base-url", "http://127.0.0.1:1/v1"], "--base-url and --model belong together"),
        (["--pairs", "0"], "must be at least 1"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
