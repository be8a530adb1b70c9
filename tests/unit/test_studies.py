"""The studies: their files are right, what is kept of them can be read, their labeller is right."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ROOT, labels
from marl.preferences import EpisodePairs
from marl.reports.kept import find_kept, read_kept
from marl.sweeps.folder import SweepFolder
from marl.sweeps.plan import load_plan
from tests.unit.test_labellers import side

RESULTS = ROOT / "benchmarks" / "results"


@pytest.mark.parametrize(
    "name", ["reference", "held_out", "credit", "labels", "label_cost", "ablations"]
)
def test_a_study_goes_on_with_what_is_kept(name: str, tmp_path: Path) -> None:
    pytest.importorskip("jaxmarl.registration", reason="needs the extra smax")
    plan = load_plan(ROOT / "benchmarks" / "studies" / f"{name}.toml")
    folder = SweepFolder(tmp_path / "out", plan, RESULTS / name)
    jobs = [folder.job(n, s) for n in range(plan.num_trials) for s in plan.task_of(n).seeds]
    assert len({folder.kept_path(job) for job in jobs}) == len(jobs)
    counted = sum(folder.kept(job) is not None for job in jobs)
    ours = [path for path in find_kept(RESULTS / name) if path.parent.name != "qmix"]
    assert counted == len(ours)  # none is of a task or a variant that the file does not have
    if name == "credit":
        assert counted >= 62


@pytest.mark.parametrize("name", ["learning", "teams", "gamma", "split"])
def test_what_is_kept_of_older_studies_can_be_read(name: str) -> None:
    paths = find_kept(RESULTS / name)
    assert len(paths) > 40
    for path in paths:
        run = read_kept(path)
        assert path.parts[-3:-1] == (run.named.task, run.named.group)


def test_the_sweeps_of_the_guide_are_right(tmp_path: Path) -> None:
    pytest.importorskip("jaxmarl.registration", reason="needs the extra smax")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    guide = (ROOT / "marl" / "sweeps" / "README.md").read_text()
    shown = re.findall(r"```toml\n(# (\w+\.toml)\b.*?)```", guide, re.DOTALL)
    trials = {}
    for content, name in shown:
        (tmp_path / name).write_text(content)
        trials[name] = load_plan(tmp_path / name).num_trials
    # Of study.toml, two tasks with three variants and one with two.
    assert trials == {"first.toml": 2, "random.toml": 20, "study.toml": 8, "tuned.toml": 40}


def test_only_the_arrival_of_all_is_preferred() -> None:
    def arrived(counts: list[float]) -> Any:
        return side([0.0] * len(counts), [[0.0, 0.0, n] for n in counts], [25] * len(counts))

    pairs = EpisodePairs(first=arrived([6.0, 5.0, 6.0, 5.0]), second=arrived([5.0, 6.0, 6.0, 0.0]))
    assert torch.equal(labels.all_arrived(pairs), torch.tensor([1.0, 0.0, 0.5, 0.5]))
