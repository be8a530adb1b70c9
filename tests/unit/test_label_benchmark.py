"""The label benchmark: its settings are real, its labeller and its page are right."""

import math
from typing import Any

import pytest
import torch

from benchmarks import labels
from benchmarks.cells import ROOT, Results, Task, load_tasks
from marl import load_config
from marl.preferences import EpisodePairs
from tests.unit.test_labellers import side


@pytest.mark.parametrize("part", labels.PARTS)
def test_every_setting_is_valid(part: str) -> None:
    algorithms, tasks = load_tasks(labels.tasks_file(part))
    assert algorithms == ("imap",)
    for task in tasks.values():
        config = load_config(ROOT / task.config, overrides=dict(task.overrides))
        assert math.isinf(config.preferences.teacher.rationality) or "beta" in task.name


def test_only_the_arrival_of_all_is_preferred() -> None:
    def arrived(counts: list[float]) -> Any:
        return side([0.0] * len(counts), [[0.0, 0.0, n] for n in counts], [25] * len(counts))

    pairs = EpisodePairs(first=arrived([6.0, 5.0, 6.0, 5.0]), second=arrived([5.0, 6.0, 6.0, 0.0]))
    assert torch.equal(labels.all_arrived(pairs), torch.tensor([1.0, 0.0, 0.5, 0.5]))


def test_the_page_groups_settings_by_figure() -> None:
    cells = [
        {
            "task": task,
            "algorithm": "imap",
            "seed": seed,
            "final": final,
            "commit": "abc",
            "machine": "m",
            "seconds": 20.0,
            "reward_correlation": 0.5,
            "preference_accuracy": None,
            "returns": [[0, 0.0], [100, final]],
        }
        for task, seed, final in (("b", 1, -4.0), ("b", 0, -2.0), ("a", 0, -8.0))
    ]
    results = Results(finished=cells, failed=[])
    tasks = {
        name: Task(name=name, title=title, config="", steps=100, seeds=(0, 1))
        for name, title in (("a", "errors: none"), ("b", "errors: some"))
    }
    panels = labels.panels_of(results, tasks)
    assert [(p.title, list(p.cells)) for p in panels] == [("errors", ["none", "some"])]
    page = labels.report(results, panels)
    assert "| some | -3.00 [-4.00, -2.00] | 0: -2.00; 1: -4.00 | 0.50 |  | 20 |" in page
