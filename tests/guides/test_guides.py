"""Every code block of the guides works as it is printed.

Python and TOML blocks whose first line names a file (``# my_labels.py``) are written as that file;
other Python blocks are run; Bash blocks are run with the command `marl`. Training stops after one
iteration, a fit after 20 gradient steps, and ``runs/RUN`` is such a run of ``configs/nav_6.toml``.
Two comments before a block: ``<!-- needs: MODULE -->`` skips it where an extra is missing,
``<!-- not run: REASON -->`` always.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("envs", "marl", "benchmarks/results")
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))
GUIDES = ("README.md", *(str(page.relative_to(ROOT)) for page in PAGES))
"""The README, and every page beside the code that it explains."""
BLOCK = re.compile(
    r"(?:^<!-- (?P<note>[^\n]*) -->\n)?^```(?P<language>python|bash|toml)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# (?P<name>\w+\.(?:py|toml))\b[^\n]*\n")
TRAINING = """#!/usr/bin/env bash
set -euo pipefail
if [[ ${1:-} == train && "$*" != *--help* && "$*" != *--total-steps* ]]; then
  set -- "$@" --total-steps 1
fi
if [[ ${1:-} =~ ^(fit-reward|imitate)$ && "$*" != *--help* && "$*" != *--steps* ]]; then
  set -- "$@" --steps 20
fi
exec "$PYTHON" -c "from marl.cli import main; main()" "$@"
"""
"""The command `marl`, whose training takes one iteration and whose fits take 20 steps."""


@dataclass(frozen=True)
class Block:
    """A code block of a guide."""

    guide: str
    number: int
    """Line of the guide on which it begins."""
    note: str
    language: str
    code: str

    @property
    def file(self) -> str | None:
        """Name of the file that the block shows; None: it is to be run."""
        named = FILE.match(self.code)
        return named["name"] if named else None


def blocks(guide: str) -> list[Block]:
    """Return the code blocks of a guide, in order."""
    text = (ROOT / guide).read_text()
    return [
        Block(guide, text[: b.start("code")].count("\n"), b["note"] or "", b["language"], b["code"])
        for b in BLOCK.finditer(text)
    ]


ALL = [block for guide in GUIDES for block in blocks(guide)]
RUN = [b for b in ALL if b.file is None and b.language != "toml" and not b.note.startswith("ci:")]


def environment(folder: Path) -> dict[str, str]:
    """Return the variables under which blocks run: `marl` stops early, the code is this one."""
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    (commands / "marl").write_text(TRAINING)
    (commands / "marl").chmod(0o755)
    return os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{ROOT}:{folder}",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one iteration."""
    folder = tmp_path_factory.mktemp("guide")
    run = folder / "run"
    command = ["marl", "train", "--config", "configs/nav_6.toml", "--run-dir", str(run)]
    subprocess.run(command, cwd=ROOT, env=environment(folder), check=True, capture_output=True)
    return run


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"{block.guide}:{block.number}")
def test_works(block: Block, tmp_path: Path, finished_run: Path) -> None:
    if block.note.startswith("not run: "):
        pytest.skip(block.note.removeprefix("not run: "))
    if block.note.startswith("needs: "):
        for module in block.note.removeprefix("needs: ").split(", "):
            pytest.importorskip(module, reason=f"the block needs {module}")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "RUN").symlink_to(finished_run)
    for shown in ALL:
        if shown.guide == block.guide and shown.file is not None:
            (tmp_path / shown.file).write_text(shown.code)
    shell = ["bash", "-euo", "pipefail", "-c", block.code]
    command = shell if block.language == "bash" else [sys.executable, "-c", block.code]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{block.code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_every_block_is_run_or_says_why_not() -> None:
    for block in ALL:
        known = ("", "ci:", "needs: ", "not run: ")
        assert any(block.note == k or (k and block.note.startswith(k)) for k in known), block
        if block.language == "toml":
            assert block.file is not None, f"{block.guide}:{block.number} names no file"
