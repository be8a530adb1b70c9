"""Whatever reads, or does not read, what `marl` prints, training goes on or ends quietly."""

import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marl.utils.checkpoint import list_checkpoints
from marl.utils.metrics import read_metrics
from tests.command_line import QUICK, run

MARL = [sys.executable, "-m", "marl"]


def test_nobody_reads_on(tmp_path: Path) -> None:
    """As in `marl train | head -1`: the run is saved, and nothing else is said."""
    process = subprocess.Popen(
        [*MARL, "train", *QUICK, "--total-steps=100000", "--run-dir=run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"slf on particles/nav_3")
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    (newest,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert int(newest.stem.removeprefix("step_")) == read_metrics(tmp_path / "run")["step"][-1]


def test_a_list_that_nobody_reads(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*MARL, "envs"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_no_silence(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def make():\n    raise BrokenPipeError('mine')\n")
    code = "from marl.commands import envs\nfrom broken import make\n"
    code += "envs.Envs.run = lambda self: make()\nfrom marl.cli import main\nmain(['envs'])\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "BrokenPipeError: mine" in done.stderr


@pytest.mark.parametrize(
    ("encoding", "terminal"), [("ascii", True), ("latin-1", False), ("utf-8", True)]
)
def test_any_encoding_will_do(tmp_path: Path, encoding: str, terminal: bool) -> None:
    name = "run-\u03c9-\u2588"
    env = os.environ | {"PYTHONIOENCODING": encoding, "TERM": "xterm", "COLUMNS": "100"}
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [*MARL, "train", *QUICK, "--run-dir", name],
        cwd=tmp_path,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=env,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how a pseudo-terminal ends
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert process.wait(timeout=60) == 0, process.communicate()
    assert b"done; look at run-" in shown
    assert (tmp_path / name / "curve.png").exists()
    if encoding != "utf-8":
        assert b"run-?-?" in shown
        assert "\u2588".encode() not in shown


@pytest.mark.parametrize("arguments", [["train", "--help"], ["envs"], ["train", "--lr=1"]])
def test_help_and_errors_in_ascii(arguments: list[str]) -> None:
    done = subprocess.run(
        [*MARL, *arguments],
        capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 2)


@pytest.mark.parametrize("delay", [0.3, 0.8, 2.0])
def test_ctrl_c_while_it_starts_says_nothing(tmp_path: Path, delay: float) -> None:
    process = subprocess.Popen(
        [*MARL, "train", *QUICK, "--total-steps=1000000", "--run-dir=run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # a run that goes on is not left behind
    assert "Traceback" not in errors or "site.py" in errors  # Python itself may not be up yet
    assert process.returncode in (130, -signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_a_terminal_that_is_closed_ends_training_saved(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*MARL, "train", *QUICK, "--total-steps=1000000", "--run-dir=run"], cwd=tmp_path
    )
    metrics = tmp_path / "run" / "metrics.csv"
    try:
        while not metrics.exists() or b"\n1" not in metrics.read_bytes():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 129
    finally:
        process.kill()
    assert len(list_checkpoints(tmp_path / "run" / "checkpoints")) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--device=cuda:99"], "device: got 'cuda:99', but PyTorch"),
        (["--device=cudax"], "device: got 'cudax', expected cpu, cuda or cuda:N"),
        (
            ["--network.hidden-sizes", "1000000", "1000000"],
            "network.hidden_sizes: got [1000000, 1000000], whose parameters with their gradients "
            "and Adam's moments need 16.0 TB",
        ),
        (
            ["--reward.hidden-sizes", "1000000", "1000000"],
            "reward.hidden_sizes: got [1000000, 1000000], whose parameters",
        ),
    ],
)
def test_what_this_machine_cannot_do_is_one_line(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", *QUICK, *flags, f"--run-dir={tmp_path}/run") in (1, 2)
    shown = capsys.readouterr().err
    assert message in " ".join(shown.split())
    assert not (tmp_path / "run").exists()


def test_markup_in_a_name_is_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "x[/red] [bold]:smile:"
    assert run("train", *QUICK, "--run-dir", str(folder)) == 0
    assert run("evaluate", str(folder), "--episodes=2", "--num-envs=2") == 0
    assert run("evaluate", f"{folder}[/b]") == 1
    shown = capsys.readouterr()
    assert f"done; look at {folder}/curve.png" in shown.out
    assert f"{folder}[/b] is not a run folder" in shown.err.replace("\n", "")


def test_no_error_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evaluate", tmp_path / "a\x1b[2Jb\rc") == 1
    said = capsys.readouterr().err
    assert r"a\x1b[2Jb\rc" in said
    assert not {"\x1b", "\r"} & set(said)
