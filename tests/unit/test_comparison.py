"""`marl compare`: groups, where they end, how fast they get there, and who is above whom."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from marl.config.io import load_config, save_config
from marl.reports.comparison import (
    Seed,
    TaskResults,
    group_names,
    rows_of,
    seed_of,
    steps_to,
    tasks_of,
)
from marl.reports.comparison_files import known_ends, seeds_in_words
from marl.reports.recorded import read_run
from tests.command_line import run

COLUMNS = ("return/mean", "return/episodes")


def finished(folder: Path, returns: list[float], **settings: object) -> Path:
    """Make the files of a run of 100 steps and one episode an iteration; return its folder."""
    folder.mkdir(parents=True)
    changes = {"env.name": "particles/nav_3", "total_steps": 100 * len(returns)} | settings
    save_config(load_config(overrides=changes), folder / "config.toml")
    rows = [f"{100 * n},{value},1\n" for n, value in enumerate(returns, start=1)]
    (folder / "metrics.csv").write_text("".join(["step,return/mean,return/episodes\n", *rows]))
    return folder


def line(end: float) -> list[float]:
    """Return twenty returns that rise from 0 to `end`, the last two of them `end`."""
    return [*(end * n / 18 for n in range(18)), end, end]


def names(*changes: dict[str, object]) -> tuple[list[str], list[str]]:
    return group_names([load_config(overrides=change) for change in changes])


NAV_6 = {"env.name": "particles/nav_6"}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([{}, {"seed": 1, "threads": 1, "checkpoint_every": 7}], ["slf", "slf"]),
        ([{}, {"algorithm": "sl"}], ["slf", "sl"]),
        # Of each environment there is one group.
        ([{}, NAV_6 | {"learner.epochs": 3}], ["slf", "slf"]),
        ([{}, NAV_6 | {"learner.epochs": 3, "algorithm": "sl"}], ["slf", "sl"]),
        # What only differs between environments is not named.
        (
            [{}, {"reward.gamma": 0.5}, NAV_6 | {"learner.epochs": 3}],
            ["reward.gamma=preset", "reward.gamma=0.5", "slf"],
        ),
        (
            [{"reward.gamma": 0.5}, {"algorithm": "sl"}],
            ["slf, reward.gamma=0.5", "sl, reward.gamma=preset"],
        ),
        (
            [{}, {"env.options": {"max_steps": 5}}],
            ["env.options.max_steps=preset", "env.options.max_steps=5"],
        ),
        # Written alike, but not equal.
        (
            [{"reward.gamma": 0.5}, {"reward.gamma": 0.50000001}, {"reward.gamma": 0.5, "seed": 1}],
            ["reward.gamma=0.5 (1)", "reward.gamma=0.5 (2)", "reward.gamma=0.5 (1)"],
        ),
    ],
)
def test_groups_are_named_by_what_differs(
    runs: list[dict[str, object]], expected: list[str]
) -> None:
    assert names(*runs) == (expected, [])


def test_long_names_hold_the_fewest_settings_that_tell_groups_apart() -> None:
    other = {
        "learner.epochs": 3,
        "learner.minibatches": 2,
        "learner.clip_coef": 0.1,
        "reward.gradient_steps": 3,
        "reward.gamma": 0.5,
    }
    # The epochs tell three groups apart; minibatches and steps only two of them.
    found, left_out = names({}, other, other | {"learner.epochs": 4}, other | {"seed": 1})
    assert found == [f"learner.epochs={n}" for n in (8, 3, 4, 3)]
    assert left_out == [
        "learner.minibatches",
        "learner.clip_coef",
        "reward.gradient_steps",
        "reward.gamma",
    ]


def test_a_run_ends_with_the_episodes_of_its_last_tenth(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", [9.0] * 8)
    with (folder / "metrics.csv").open("a") as file:
        file.write("900,1000.0,9\n950,2.0,1\n980,,0\n1000,6.0,3\n")
    # Step 900 is not beyond 90 % of 1000. One episode of 2 and three of 6: (2 + 18) / 4.
    seed = seed_of(read_run(folder, COLUMNS), "return/mean", 1000)
    assert seed is not None
    assert seed.final == 5.0
    # Up to 800 steps only the last counts: 9.
    seed = seed_of(read_run(folder, COLUMNS), "return/mean", 800)
    assert seed is not None
    assert (seed.final, len(seed.steps)) == (9.0, 8)
    # No row lies beyond 90 % of 890 and at most there.
    assert seed_of(read_run(folder, COLUMNS), "return/mean", 890) is None


def curve(number: int, values: list[float]) -> Seed:
    steps = np.arange(1, len(values) + 1) * 100
    return Seed(number=number, steps=steps, values=np.array(values), final=values[-1])


def test_steps_to_a_level() -> None:
    assert steps_to(curve(0, [0.0, 1.0, 2.0, 3.0]), 2.0) == 300.0
    assert steps_to(curve(0, [0.0, 1.0]), 2.0) == math.inf
    # Forty points are smoothed over two: (0 + 4) / 2 = 2 at the second.
    assert steps_to(curve(0, [0.0, *[4.0] * 39]), 2.0) == 200.0
    groups = {
        "fast": [curve(n, [0.0, 10.0, 10.0]) for n in range(3)],
        "slow": [curve(0, [0.0, 5.0, 9.0]), curve(1, [0.0, 0.0, 0.0]), curve(2, [0.0, 1.0, 1.0])],
    }
    task = TaskResults(name="t", groups=groups, until=300)
    assert task.level == 8.0  # 80 % of the way from 0 to 10
    fast, slow = rows_of(task)
    assert (fast.reached, fast.steps_to_level) == (3, 200.0)
    assert (slow.reached, slow.steps_to_level) == (1, math.inf)
    assert (fast.whole.value, slow.final.value) == (7.5, 10.0 / 3.0)  # (5 + 10) / 2
    assert [row.reached for row in rows_of(task, 1.0)] == [3, 2]


def test_the_page_the_table_and_the_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, end in (("imap", 9.0), ("sparse", 2.0)):
        for seed in range(3):
            folder = tmp_path / "runs" / f"{name}-{seed}"
            finished(folder, line(end + seed), algorithm=name, seed=seed)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "config.toml").write_text('seed = "|<b>"\n')
    assert run("compare", tmp_path / "runs") == 0
    page = capsys.readouterr().out
    # Three seeds: nothing is cut, the means are 10 and 3, and no resample leaves the seeds' range.
    assert "| imap | 0, 1, 2 | 10.00 [9.00, 11.00] |" in page
    assert "| sparse | 0, 1, 2 | 3.00 [2.00, 4.00] |" in page
    assert "| imap |  | 1.00 [1.00, 1.00] |" in page
    # 80 % of the way from 0 to 10; each imap seed rises by a half or more in 100 steps.
    assert "not reached" in page
    assert "- left out: " in page
    assert (tmp_path / "runs" / "comparison.md").read_text() in page
    assert (tmp_path / "runs" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "runs" / "comparison.csv").open()))
    assert [row["group"] for row in rows] == ["imap", "sparse"]
    assert [float(rows[0][key]) for key in ("final_iqm", "final_low", "level")] == [10.0, 9.0, 8.0]
    assert rows[0]["finals"] == "9.0 10.0 11.0"
    assert (rows[1]["median_steps_to_level"], rows[1]["seeds_at_level"]) == ("", "0")
    assert known_ends(tmp_path / "runs", "particles/nav_3") == {"imap": 10.0, "sparse": 3.0}
    assert known_ends(tmp_path / "runs", "particles/nav_6") == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"environment,group\nparticles/nav_3,imap\n",
        b"environment,group,measure,final_iqm\nparticles/nav_3,imap,return,much\n",
        b"environment,group,measure,final_iqm\nparticles/nav_3,imap,win rate,1.0\n",
        b"environment,group,measure,final_iqm\nparticles/nav_3,imap,return,inf\n",
        b"environment,group,measure,final_iqm\nparticles/nav_3,imap,return\n",
        b"\xff\xfe\x00",
    ],
)
def test_what_is_no_table_of_returns_tells_no_ends(content: bytes, tmp_path: Path) -> None:
    assert known_ends(tmp_path, "particles/nav_3") == {}
    (tmp_path / "comparison.csv").write_bytes(content)
    assert known_ends(tmp_path, "particles/nav_3") == {}


def test_environments_are_apart_and_together(tmp_path: Path) -> None:
    for env, gain in (("particles/nav_3", 0.0), ("particles/nav_6", 5.0)):
        for name, end in (("imap", 4.0), ("sl", 4.0 - gain)):
            folder = tmp_path / env.replace("/", "_") / name
            finished(folder, line(end), algorithm=name, **{"env.name": env})
    out = tmp_path / "out"
    assert run("compare", tmp_path, "--out", out) == 0
    page = (out / "comparison.md").read_text()
    assert page.index("## particles/nav_3") < page.index("## particles/nav_6")
    # A tie in one environment, above in the other: (.5 + 1) / 2.
    assert "| imap |  | 0.75 |" in page[page.index("## All environments") :]


def test_what_cannot_be_compared_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = finished(tmp_path / "a_one", line(1.0))
    finished(tmp_path / "b_again", line(1.0))
    short = finished(tmp_path / "c_short", line(1.0)[:10], seed=1, total_steps=2000)
    runs = [read_run(folder, COLUMNS) for folder in sorted(tmp_path.iterdir())]
    tasks, notes = tasks_of(runs, "return/mean")
    assert tasks[0].until == 1000
    assert notes == [
        f"particles/nav_3: compared up to 1,000 steps, as far as {short} has come; --steps leaves "
        "out runs with fewer",
        f"left out: {tmp_path / 'b_again'} repeats seed 0 of slf",
    ]
    tasks, notes = tasks_of(runs, "return/mean", until=2000)
    assert tasks[0].seeds == [0]
    assert notes[0] == f"left out: {short} has 1,000 steps, fewer than 2,000"
    assert run("compare", one, "--metric", "episode/won") == 1
    assert "has no episode/won yet" in capsys.readouterr().err.replace("\n", " ")
    assert run("compare", tmp_path / "nowhere") == 1
    assert "no run in" in capsys.readouterr().err


def test_foreign_names_are_no_markup(tmp_path: Path) -> None:
    name = "my.env:$x_{$|<b>"
    for seed in range(2):
        finished(tmp_path / str(seed), line(1.0), seed=seed, **{"env.name": name})
    assert run("compare", tmp_path) == 0
    assert r"## my.env:$x_{$\|&lt;b>, slf" in (tmp_path / "comparison.md").read_text()


def test_seeds_in_titles() -> None:
    assert seeds_in_words([3]) == "seeds 3"
    assert seeds_in_words([3, 4]) == "seeds 3, 4"
    assert seeds_in_words([3, 4, 5]) == "seeds 3 to 5"
    assert seeds_in_words([3, 5, 6]) == "seeds 3, 5, 6"
    assert seeds_in_words(list(range(0, 20, 2))) == "10 seeds"
