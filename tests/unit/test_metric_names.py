"""The table of metrics (`marl/reports/README.md`) has every metric, each once, and no other."""

import re
from pathlib import Path

import pytest

import marl
from tests.small_runs import small

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "marl/reports/README.md").read_text()
GROUPS = (
    "return",
    "episode",
    "evaluation",
    "policy",
    "value",
    "reward",
    "preference",
    "regression",
    "calibration",
    "demonstrations",
    "labeller",
    "benchmark",
    "time",
    "memory",
)


def named() -> list[str]:
    """Return the names in the table, in their order."""
    rows = re.findall(r"^\| (`.*?) \| .+ \|$", TABLE, re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


def matches(name: str) -> list[str]:
    """Return the names in the table that a metric has; capitals stand for anything.

    A name that is written out stands before one with capitals.
    """
    if name in named():
        return [name for other in named() if other == name]
    patterns = {other: re.sub(r"[A-Z]+", r"\\w+", other) for other in named()}
    return [other for other, pattern in patterns.items() if re.fullmatch(pattern, name)]


def in_source() -> set[str]:
    """Return the names of metrics that the package writes, Z in place of what is filled in."""
    text = "".join(path.read_text() for path in sorted((ROOT / "marl").rglob("*.py")))
    found = re.findall(rf'"((?:{"|".join(GROUPS)})/[^"/ ]+)"', text)
    llm = re.findall(r'"(llm_[a-z_]+)"', text)
    names = {re.sub(r"\{[^}]*\}", "Z", name) for name in found}
    return (names | {f"labeller/{name}" for name in llm}) - {"labeller/Z"}


def test_no_name_stands_twice() -> None:
    assert len(named()) == len(set(named())) > 50


def test_every_name_in_the_source_is_in_the_table() -> None:
    examples = {re.sub(r"[A-Z]+", "x", name) for name in named()}
    drawn = {"value/loss"}  # the beginning of two names, in a plot
    for name in sorted(in_source() - drawn):
        pattern = re.escape(name).replace("Z", r"\w+")
        assert any(re.fullmatch(pattern, example) for example in examples) or matches(name), name


def test_every_name_in_the_table_is_in_the_source() -> None:
    text = "".join(path.read_text() for path in (ROOT / "marl").rglob("*.py"))
    patterns = {re.escape(name).replace("Z", r"\w+") for name in in_source()}
    for name in named():
        example = re.sub(r"[A-Z]+", "x", name)
        is_written = any(re.fullmatch(pattern, example) for pattern in patterns)
        llm = name.removeprefix("labeller/llm_")
        ends = re.split(r"[A-Z]", name.rpartition("/")[2].removeprefix("llm_"))[0]
        assert (
            is_written
            or (llm != name and f'"{ends}' in text)
            or name
            in (
                "step",
                "steps",
                "labeller/expired",
                "labeller/cascade_N_asked",
            )
        ), name


@pytest.mark.parametrize(
    "changes",
    [
        {
            "learner.kind": "happo",
            "reward.calibration": 0.5,
            "eval.every": 240,
            "eval.episodes": 4,
            "eval.num_envs": 4,
        },
        {"algorithm": "dpo"},
        {"algorithm": "tar2", "learner.kind": "ippo", "diagnose_hidden": True},
    ],
)
def test_what_runs_report_is_in_the_table_once(changes: dict[str, object]) -> None:
    reported: set[str] = set()
    for metrics in marl.train(small(**changes, total_steps=240)):
        reported |= metrics.keys()
    for name in sorted(reported):
        assert len(matches(name)) == 1, (name, matches(name))
