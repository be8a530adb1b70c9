"""The learning benchmark keeps, resumes and summarises its cells as it says."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import aggregate, cells, learning
from benchmarks.cells import Cell, Task
from marl import load_config

TASK = Task(name="toy", title="Toy task", config="configs/toy.toml", steps=100, seeds=(0, 1))
TASKS_TOML = """
algorithms = ["imap", "sparse"]
[toy]
title = "Toy task"
config = "configs/toy.toml"
steps = 100
seeds = [0, 1]
overrides = { "learner.epochs" = 2 }
"""


def finished(algorithm: str, seed: int, final: float, **changes: Any) -> dict[str, Any]:
    """Return a cell as `learning` writes it, with a straight learning curve up to `final`."""
    return {
        "task": "toy",
        "algorithm": algorithm,
        "seed": seed,
        "steps": 100,
        "commit": "abc1234",
        "machine": "a machine",
        "seconds": 3.0,
        "final": final,
        "reward_correlation": 0.5,
        "preference_accuracy": None,
        "evaluation": {},
        "returns": [[0, 0.0], [100, final]],
        **changes,
    }


def metrics_of(steps: int, mean: float, episodes: int, **others: float) -> dict[str, float]:
    """Return one iteration's metrics, as far as the benchmark reads them."""
    return {"steps": steps, "return/mean": mean, "return/episodes": episodes, **others}


def stub_trainer(cell: Cell) -> Iterator[dict[str, float]]:
    """Yield three iterations; the last two lie in the last tenth of 100 steps."""
    yield metrics_of(90, 1000.0, 4, **{"benchmark/reward_correlation": 0.9})
    yield metrics_of(95, 2.0, 1, **{"benchmark/reward_correlation": 0.2, "evaluation/greedy": 7.0})
    yield metrics_of(98, float("nan"), 0, **{"preference/accuracy": float("nan")})
    yield metrics_of(100, 6.0, 3, **{"benchmark/reward_correlation": 0.4})


def test_cell_summarises_the_last_tenth() -> None:
    cell = learning.run_cell(Cell(TASK, "imap", 0), stub_trainer)
    # Step 90 is not beyond 90 % of 100 steps. One episode of 2 and three of 6: (2 + 18) / 4 = 5.
    assert cell["final"] == 5.0
    assert cell["reward_correlation"] == pytest.approx(0.3)  # (0.2 + 0.4) / 2
    assert cell["preference_accuracy"] is None
    assert cell["evaluation"] == {"greedy": 7.0}
    assert cell["returns"] == [[90, 1000.0], [95, 2.0], [100, 6.0]]  # no episode ended at 98


def test_cell_without_late_episode_is_an_error() -> None:
    def no_episode(cell: Cell) -> Iterator[dict[str, float]]:
        yield metrics_of(50, 1.0, 1)
        yield metrics_of(100, float("nan"), 0)

    with pytest.raises(ValueError, match=r"toy/imap/seed_0: no episode ended"):
        learning.run_cell(Cell(TASK, "imap", 0), no_episode)


def test_finished_cells_are_skipped_and_other_budgets_refused(tmp_path: Path) -> None:
    first, second = Cell(TASK, "imap", 0), Cell(TASK, "imap", 1)
    cells.write_json(first.path(tmp_path), finished("imap", 0, 1.0))
    assert learning.pending([first, second], tmp_path) == [second]
    cells.write_json(first.path(tmp_path), finished("imap", 0, 1.0, steps=50))
    with pytest.raises(ValueError, match="trained for 50 steps, the tasks file asks for 100"):
        learning.pending([first, second], tmp_path)


def test_failed_cell_leaves_its_error_and_is_cleared_by_success(tmp_path: Path) -> None:
    good, bad = Cell(TASK, "imap", 0), Cell(TASK, "imap", 1)

    def command(cell: Cell) -> list[str]:
        if cell is bad:
            return [sys.executable, "-c", "raise RuntimeError('boom')"]
        content = repr(json.dumps(finished("imap", 0, 1.0)))
        path = repr(str(cell.path(tmp_path)))
        return [sys.executable, "-c", f"open({path}, 'w').write({content})"]

    cells.write_json(good.failed_path(tmp_path), {"traceback": "from an earlier attempt"})
    assert learning.run_matrix([good, bad], tmp_path, 2, command) == [bad]
    results = cells.read_results(tmp_path)
    assert [cell["seed"] for cell in results.finished] == [0]
    assert [cell["seed"] for cell in results.failed] == [1]
    assert results.failed[0]["traceback"].strip().endswith("RuntimeError: boom")
    assert "toy, imap, seed 1: RuntimeError: boom" in aggregate.failures(results.failed)


def test_tasks_file_is_read_and_its_gaps_are_named(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS_TOML)
    algorithms, tasks = cells.load_tasks(path)
    assert algorithms == ("imap", "sparse")
    assert tasks["toy"].seeds == (0, 1)
    assert tasks["toy"].overrides == {"learner.epochs": 2}
    path.write_text(TASKS_TOML.replace("steps = 100", ""))
    with pytest.raises(ValueError, match=r"\[toy\].*steps"):
        cells.load_tasks(path)


def test_variants_cross_every_task(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    variants = """
[variants.slow]
title = "slowly"
overrides = { "learner.epochs" = 1, "reward.gamma" = 0.5 }
"""
    path.write_text(TASKS_TOML + variants)
    _, tasks = cells.load_tasks(path)
    assert list(tasks) == ["toy_slow"]
    assert tasks["toy_slow"].title == "Toy task: slowly"
    assert tasks["toy_slow"].overrides == {"learner.epochs": 1, "reward.gamma": 0.5}


def test_a_task_may_be_crossed_with_some_variants_only(tmp_path: Path) -> None:
    path = tmp_path / "tasks.toml"
    both = "".join(f'[variants.{n}]\ntitle = "{n}"\noverrides = {{}}\n' for n in ("a", "b"))
    path.write_text(TASKS_TOML + both)
    assert list(cells.load_tasks(path)[1]) == ["toy_a", "toy_b"]
    path.write_text(TASKS_TOML.replace("steps = 100", 'steps = 100\nvariants = ["b"]') + both)
    assert list(cells.load_tasks(path)[1]) == ["toy_b"]


def test_a_task_may_be_measured_by_a_fact() -> None:
    def battles(cell: Cell) -> Iterator[dict[str, float]]:
        yield metrics_of(95, 2.0, 1, **{"episode/won": 1.0})
        yield metrics_of(100, 6.0, 3, **{"episode/won": 0.0})

    task = replace(TASK, measure="episode/won")
    assert task.measured == "win rate"
    cell = learning.run_cell(Cell(task, "imap", 0), battles)
    assert cell["final"] == 0.25  # one win in four
    assert cell["returns"] == [[95, 1.0], [100, 0.0]]


@pytest.mark.parametrize("name", ["tasks", "gamma_tasks", "teams", "credit"])
def test_every_setting_of_a_tasks_file_is_valid(name: str) -> None:
    _, tasks = cells.load_tasks(cells.ROOT / "benchmarks" / f"{name}.toml")
    for task in tasks.values():
        load_config(cells.ROOT / task.config, overrides=dict(task.overrides))


def test_command_line_trains_nothing_when_all_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tasks.toml"
    path.write_text(TASKS_TOML)
    for algorithm in ("imap", "sparse"):
        for seed in (0, 1):
            cell = Cell(TASK, algorithm, seed)
            cells.write_json(cell.path(tmp_path), finished(algorithm, seed, 1.0))
    assert learning.main(["--tasks-file", str(path), "--cells", str(tmp_path)]) == 0
    assert "4 of 4 cells are there; 0 to train" in capsys.readouterr().out


def test_one_table_compares_one_budget() -> None:
    mixed = [finished("imap", 0, 1.0), finished("sparse", 0, 1.0, steps=50)]
    with pytest.raises(ValueError, match=r"toy were trained for \[50, 100\] steps"):
        aggregate.grouped(mixed)


def test_page_shows_every_number_and_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(TASKS_TOML)
    for algorithm, finals in {"imap": (8.0, 9.0, 10.0), "sparse": (1.0, 2.0, 3.0)}.items():
        for seed, final in enumerate(finals):
            path = Cell(TASK, algorithm, seed).path(tmp_path / "cells")
            cells.write_json(path, finished(algorithm, seed, final))
    arguments = ["--results", str(tmp_path), "--tasks-file", str(tmp_path / "tasks.toml")]
    assert aggregate.main(arguments) == 0
    page = (tmp_path / "README.md").read_text()
    # Three seeds: nothing is cut, the means are 9 and 2, and no resample leaves the seeds' range.
    assert "| Toy task | 9.00 [8.00, 10.00] | 2.00 [1.00, 3.00] |" in page
    assert "| Toy task | above |" in page
    assert "0: 8.00; 1: 9.00; 2: 10.00" in page
    for part in ("abc1234 (6 cells)", "a machine", "python -m benchmarks.learning", "100 steps"):
        assert part in page
    for name in ("all.png", "toy.png"):
        assert (tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG")
