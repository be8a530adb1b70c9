"""Outcomes that are kept of runs: what they hold, and comparisons made of them alone."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from marl import UserError
from marl.reports import comparison_files
from marl.reports.comparison import TaskResults, seed_of, tasks_of
from marl.reports.comparison_files import page
from marl.reports.kept import (
    find_kept,
    keep,
    kept_path,
    kept_runs,
    outcome_of,
    read_kept,
    thinned,
)
from marl.reports.recorded import RunName, read_run
from marl.utils.files import atomic_path
from tests.command_line import run
from tests.unit.test_comparison import COLUMNS, finished, line

NAME = RunName(task="toy", group="imap")


def kept(folder: Path, group: str, seed: int, end: float, metric: str = "return/mean") -> Path:
    """Keep a run that ends at `end`; return the file."""
    made = finished(folder / "runs" / f"{group}_{seed}", line(end), seed=seed)
    named = RunName(task="toy", group=group, metric=metric)
    path = kept_path(folder / "kept", named, seed)
    keep(outcome_of(read_run(made, COLUMNS), named, {"learner.epochs": 3}, "abc1234"), path)
    return path


def test_a_kept_run_is_compared_as_the_run_is(tmp_path: Path) -> None:
    path = kept(tmp_path, "imap", 4, 9.0)
    assert path == tmp_path / "kept" / "toy" / "imap" / "seed_4.json"
    again = read_kept(path)
    assert (again.named, again.seed, again.commit) == (NAME, 4, "abc1234")
    assert (again.steps, again.total_steps) == (2000, 2000)
    assert again.settings == {"learner.epochs": 3}
    original = read_run(tmp_path / "runs" / "imap_4", COLUMNS)
    first, second = (seed_of(one, "return/mean", 2000) for one in (original, again))
    assert first is not None
    assert second is not None
    assert (first.number, first.final) == (second.number, second.final)
    np.testing.assert_allclose(first.values, second.values, rtol=1e-5)
    # No longer up to its end: the last tenth of 1,000 steps is the row at 1,000, 9 times 9/18.
    part = seed_of(again, "return/mean", 1000)
    assert part is not None
    assert part.final == 4.5
    assert seed_of(again, "episode/won", 2000) is None


def test_metrics_at_the_end_and_seconds(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", [], total_steps=1000)
    head = "step,return/mean,return/episodes,evaluation/greedy,preference/accuracy,"
    head += "preference/asked,time/steps_per_second,time/reward\n"
    rows = [
        "500,1.0,1,,0.1,10,100.0,2.0",
        "950,2.0,1,,0.5,20,100.0,1.5",
        "1000,6.0,3,7.0,0.7,30,50.0,",
    ]
    (folder / "metrics.csv").write_text(head + "\n".join(rows) + "\n")
    outcome = outcome_of(read_run(folder, COLUMNS), NAME, {}, "abc")
    assert outcome["final"] == 5.0  # one episode of 2 and three of 6
    assert outcome["numbers"]["preference/accuracy"] == 0.6  # of the last tenth
    assert outcome["numbers"]["preference/asked"] == 60.0  # of the whole run
    assert outcome["numbers"]["evaluation/greedy"] == 7.0
    assert not any(name.startswith("time/") for name in outcome["numbers"])
    # 500 and 450 steps at 100 a second, 50 at 50.
    assert outcome["seconds"]["total"] == 10.5
    assert outcome["seconds"]["reward"] == 3.5
    assert outcome["curve"] == [[500, 1.0, 1], [950, 2.0, 1], [1000, 6.0, 3]]


def test_long_curves_are_thinned_and_end_as_before() -> None:
    rng = np.random.default_rng(0)
    steps, episodes = np.arange(1, 1001) * 30, rng.integers(0, 4, 1000)
    values = np.where(episodes > 0, rng.normal(size=1000), np.nan)
    points = np.array(thinned(steps, values, episodes.astype(float), 30_000))
    assert len(points) == 100
    assert points[-1, 0] <= 30_000
    assert points[:, 2].sum() == episodes.sum()
    late = points[:, 0] > 27_000
    known = (steps > 27_000) & (episodes > 0)
    exact = np.average(values[known], weights=episodes[known])
    assert np.average(points[late, 1], weights=points[late, 2]) == pytest.approx(exact, rel=1e-4)


def test_the_page_of_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(3):
        kept(tmp_path, "imap", seed, 9.0 + seed)
        kept(tmp_path, "sparse", seed, 2.0 + seed)
    kept(tmp_path, "new", 0, 1.0)
    assert run("compare", tmp_path / "kept", "--against", "mapi") == 0
    assert "- against: no group is called mapi; there are imap, " in capsys.readouterr().out
    assert run("compare", tmp_path / "kept", "--against", "imap") == 0
    shown = (tmp_path / "kept" / "comparison.md").read_text()
    assert shown in capsys.readouterr().out
    assert "| imap | 0, 1, 2 | 10.00 [9.00, 11.00] |" in shown
    assert "| toy | ? | above |" in shown or "| toy | above | ? |" in shown
    assert "probability of improvement" in shown
    assert "0: 9.00; 1: 10.00; 2: 11.00" in shown
    assert "- commit: abc1234 (7 runs)" in shown
    assert (tmp_path / "kept" / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_each_task_is_compared_by_its_own_metric(tmp_path: Path) -> None:
    folder = finished(tmp_path / "run", [], total_steps=1000)
    text = "step,return/mean,return/episodes,episode/won\n900,5.0,1,0.25\n1000,6.0,1,0.5\n"
    (folder / "metrics.csv").write_text(text)
    columns = (*COLUMNS, "episode/won")
    for order, task, metric in ((3, "a", "return/mean"), (2, "b", "episode/won")):
        named = RunName(task=task, group="imap", metric=metric)
        outcome = outcome_of(read_run(folder, columns), named, {}, "abc", order)
        keep(outcome, kept_path(tmp_path / "kept", named, 0))
    damaged = tmp_path / "kept" / "c" / "imap" / "seed_0.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("[]")
    runs, left_out = kept_runs(find_kept(tmp_path / "kept"))
    assert len(left_out) == 1
    assert left_out[0].startswith(f"left out: {damaged} holds no kept run")
    tasks, notes = tasks_of(runs)
    # In the order of the sweep's file.
    assert [(task.name, task.measure) for task in tasks] == [("b", "win rate"), ("a", "return")]
    assert [task.groups["imap"][0].final for task in tasks] == [0.5, 6.0]
    assert notes == []
    assert "| b | 0.50 |" in page(tasks, None, [], "")


@pytest.mark.parametrize(
    "change",
    [
        {"kept": 2},
        {"task": 5},
        {"curve": [[1, 2], [3]]},
        {"curve": "x"},
        {"numbers": []},
        {"settings": []},
        {"seconds": {"total": "long"}},
        {"steps": None},
        {"seed": 1e400},
        {"seed": 10**400},
        {"total_steps": 10**400},
        {"steps": -5},
        {"final": 1e400},
        {"order": True},
        {"group": "a\ud800b"},
        {"metric": "\ud800"},
        {"curve": [[1000, 1.0, 1], [1000, 2.0, 1]]},
        {"curve": [[1000, 1.0, 1], [500, 2.0, 1]]},
        {"curve": [[-1000, 1.0, 1]]},
        {"curve": [[2500, 1.0, 1]]},
        {"curve": [[1000, 1e400, 1]]},
        {"numbers": {"preference/accuracy": 1e400}},
    ],
)
def test_what_is_no_kept_run_is_told(change: dict[str, object], tmp_path: Path) -> None:
    path = kept(tmp_path, "imap", 0, 1.0)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match="holds no kept run"):
        read_kept(path)


def test_names_are_no_paths_and_pipes_are_not_waited_for(tmp_path: Path) -> None:
    named = RunName(task="../../my.env:E", group="/etc/x")
    assert kept_path(tmp_path, named, 0) == tmp_path / "my.env_E" / "etc_x" / "seed_0.json"
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    os.mkfifo(folder / "seed_0.json")
    assert find_kept(tmp_path) == []
    with pytest.raises(UserError, match="holds no kept run: it is no file"):
        read_kept(folder / "seed_0.json")


def test_long_names_that_end_otherwise_are_kept_apart(tmp_path: Path) -> None:
    groups = [f"{'learner.gamma=0.99, ' * 6}learner.epochs={number}" for number in (1, 2)]
    paths = [kept_path(tmp_path, RunName(task="toy", group=group), 0) for group in groups]
    assert paths[0] != paths[1]
    assert all(len(path.parent.name) == 80 for path in paths)
    assert paths[0] == kept_path(tmp_path, RunName(task="toy", group=groups[0]), 0)


def test_two_processes_write_comparisons_to_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, _ = kept_runs([kept(tmp_path, "imap", seed, 9.0) for seed in range(3)])
    draw, out = comparison_files.draw_tasks, tmp_path / "out"

    def another_meanwhile(tasks: Sequence[TaskResults], path: Path) -> Path:
        monkeypatch.setattr(comparison_files, "draw_tasks", draw)
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"begun")
            comparison_files.write_comparison(runs[:2], out)
        return path

    monkeypatch.setattr(comparison_files, "draw_tasks", another_meanwhile)
    shown = comparison_files.write_comparison(runs, out)
    assert (out / "comparison.md").read_text() == shown
    assert sorted(os.listdir(out)) == ["comparison.csv", "comparison.md", "comparison.png"]


@pytest.mark.usefixtures("drawn")
def test_the_curve_of_one_iteration_is_seen(tmp_path: Path) -> None:
    runs, _ = kept_runs([kept(tmp_path, "imap", 0, 9.0)])
    one = replace(runs[0], metrics={k: v[-1:] for k, v in runs[0].metrics.items()})
    pictures = [tmp_path / f"{number}.png" for number in range(2)]
    for picture, colour in zip(pictures, ("#d1495b", "#ffffff"), strict=True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(comparison_files, "_add_legend", lambda *_: None)
            patch.setitem(comparison_files._COLOURS, "imap", colour)
            comparison_files.draw_tasks(tasks_of([one])[0], picture)
    assert pictures[0].read_bytes() != pictures[1].read_bytes()
