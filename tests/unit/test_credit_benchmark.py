"""The study of credit: what is trained first, and the tables of what was trained."""

from pathlib import Path
from typing import Any

from benchmarks import credit
from benchmarks.cells import Cell, load_tasks, write_json


def test_the_most_informative_cells_come_first_and_every_variant_before_another_seed() -> None:
    _, tasks = load_tasks(credit.STUDY_FILE)
    cells = [Cell(task, "imap", seed) for task in tasks.values() for seed in task.seeds]
    done = credit.ordered(cells)
    assert sorted(map(str, done)) == sorted(map(str, cells))
    assert [(cell.task.name, cell.seed) for cell in done[:4]] == [
        (f"smacv2_5_units_episodic_{rule}", 100)
        for rule in ("ends", "alive_mean", "team_share", "centred")
    ]
    for task, _ in credit.FIRST:
        seeds = [cell.seed for cell in done if cell.task.name.startswith(f"{task}_")]
        assert seeds == sorted(seeds)


def cell(task: str, seed: int, final: float) -> dict[str, Any]:
    return {
        "task": task,
        "algorithm": "imap",
        "seed": seed,
        "steps": 200_000,
        "commit": "abc",
        "seconds": 60.0,
        "final": final,
        "preference_accuracy": 0.9,
        "held_out_loss": None,
        "evaluation": {"greedy": 1.0, "sampled": 0.5},
        "returns": [[100_000, 0.0], [200_000, final]],
        "gradient_steps": 32.0,
        "reward_seconds": 20.0,
        "policy_seconds": 30.0,
    }


def test_tables_show_every_seed(tmp_path: Path) -> None:
    _, tasks = load_tasks(credit.STUDY_FILE)
    for rule, finals in (("ends", [0.25, 0.75]), ("alive_mean", [0.5])):
        for seed, final in enumerate(finals, start=100):
            name = f"3m_episodic_{rule}"
            path = Cell(tasks[name], "imap", seed).path(tmp_path / "cells")
            write_json(path, cell(name, seed, final))
    credit.main(["--report", "--results", str(tmp_path)])
    rows = (tmp_path / "credit.csv").read_text().splitlines()
    assert rows[0] == ",".join(credit.COLUMNS)
    assert [row.split(",")[:4] for row in rows[1:]] == [
        ["3m_episodic_ends", "100", "200000", "0.25"],
        ["3m_episodic_ends", "101", "200000", "0.75"],
        ["3m_episodic_alive_mean", "100", "200000", "0.5"],
    ]
    text = (tmp_path / "credit.md").read_text()
    assert "## 3m, episodic, 200,000 steps" in text
    assert "| ends | 100: 0.25, 101: 0.75 | 0.5 | 0.25 |" in text
    assert "| alive_mean | 100: 0.5 | 0.5 | 0.25 |" in text
