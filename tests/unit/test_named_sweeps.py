"""Sweeps of named tasks and variants: what their trials are, and what is kept of them."""

import json
from pathlib import Path

import pytest

from marl.config import ConfigError
from marl.sweeps.folder import SweepFolder
from marl.sweeps.plan import Plan
from marl.sweeps.runner import grid_jobs
from marl.sweeps.table import write_table
from tests.unit.test_sweeps import GRID, finish, plan_of

NAMED = """
seeds = [0, 1]
against = "ours"
[settings]
total_steps = 800
learner.epochs = 5

[tasks.small]
config = "small.toml"
[tasks.large]
config = "small.toml"
metric = "episode/arrived"
seeds = [4, 5, 6]
variants = ["ours", "slow"]
env.name = "particles/nav_6"
with.slow = { learner.minibatches = 2 }

[variants]
ours = { algorithm = "imap" }
theirs = { algorithm = "sparse", learner.kind = "ippo" }
slow = { algorithm = "imap", learner.epochs = 9 }
"""


def named_plan(folder: Path, old: str = "", new: str = "") -> Plan:
    (folder / "small.toml").write_text("total_steps = 5\n[env]\nname = 'particles/nav_3'\n")
    assert old in NAMED
    return plan_of(folder, NAMED.replace(old, new) if old else NAMED)


def test_named_tasks_and_variants(tmp_path: Path) -> None:
    plan = named_plan(tmp_path)
    trials = [plan.settings_of(trial) for trial in range(plan.num_trials)]
    assert [(t["task"], t["variant"]) for t in trials] == [
        *(("small", variant) for variant in ("ours", "theirs", "slow")),
        *(("large", variant) for variant in ("ours", "slow")),
    ]
    # A task's file comes before what all share, and a variant after the task.
    config = plan.config_of(trials[1], 7)
    assert (config.env.name, config.total_steps, config.seed) == ("particles/nav_3", 800, 7)
    assert (config.algorithm, config.learner.kind, config.learner.epochs) == ("sparse", "ippo", 5)
    slow = [plan.config_of(trials[trial], 0).learner for trial in (2, 4)]
    assert [(one.epochs, one.minibatches) for one in slow] == [(9, 4), (9, 2)]
    named = plan.name_of(4, trials[4])
    assert (named.task, named.group, named.metric) == ("large", "slow", "episode/arrived")
    jobs = grid_jobs(SweepFolder(tmp_path / "out", plan))
    assert [(plan.place_of(job.trial), job.seed) for job in jobs] == [
        *((f"small/{variant}", 0) for variant in ("ours", "theirs", "slow")),
        *((f"large/{variant}", 4) for variant in ("ours", "slow")),
        *((f"small/{variant}", 1) for variant in ("ours", "theirs", "slow")),
        *((f"large/{variant}", 5) for variant in ("ours", "slow")),
        *((f"large/{variant}", 6) for variant in ("ours", "slow")),
    ]


def test_a_quick_sweep_takes_one_iteration_whatever_its_file_says(tmp_path: Path) -> None:
    longer = "with.slow = { total_steps = 9_000, "
    plan = named_plan(tmp_path, "with.slow = { ", longer)
    quick = plan.quickened()
    trials = range(quick.num_trials)
    assert {quick.config_of(quick.settings_of(t), 0).num_iterations for t in trials} == {1}
    jobs = grid_jobs(SweepFolder(tmp_path / "quick", quick))
    assert [job.seed for job in jobs] == [0, 0, 0, 4, 4]
    with pytest.raises(ConfigError, match=r"began otherwise: quick \(True there, None now\)"):
        SweepFolder(tmp_path / "quick", plan)
    searched = plan_of(tmp_path, GRID + "total_steps = [8_000, 16_000]\n").quickened()
    assert searched.config_of(searched.settings_of(3), 0).num_iterations == 1


def test_variants_may_be_searched_too(tmp_path: Path) -> None:
    plan = named_plan(tmp_path, "[variants]", "[search]\nlearner.gamma = [0.9, 0.99]\n[variants]")
    assert plan.num_trials == 10
    assert plan.place_of(3) == "small/theirs/0001"
    tried = plan.settings_of(3)
    assert plan.name_of(3, tried).group == "theirs, learner.gamma=0.99"
    assert plan.config_of(tried, 0).learner.gamma == 0.99


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"slow"]',
            '"slwo"]',
            r"tasks.large: variants: there is no slwo; \[variants\] has ours",
        ),
        ("with.slow", "with.slwo", r"tasks.large: variants: there is no slwo"),
        ("[tasks.small]", '[tasks."a/b"]', r"tasks: 'a/b' names a folder, too; use letters"),
        ('against = "ours"', 'against = "us"', r"against: there is no variant 'us'"),
        ('against = "ours"', 'method = "random"\ntrials = 2', r"crossed on a grid only"),
        ('against = "ours"', "evaluation_seeds = [9]", r"no trial is the best of several tasks"),
        ("[4, 5, 6]", "[4, 4]", r"tasks.large: seeds: 4 stands twice"),
        ("[4, 5, 6]", '["a"]', r"tasks.large: seeds: got .*expected"),
        ("learner.epochs = 9", "learner.epoch = 9", r"trial small/slow: unknown key learner.epoch"),
        ("learner.epochs = 9", "seed = 9", r"seed is not set by itself"),
        ("minibatches = 2", "minibatches = 0", r"trial large/slow: learner.minibatches: got 0"),
    ],
)
def test_what_is_wrong_with_names_is_told(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        named_plan(tmp_path, old, new)


def test_named_trials_may_come_and_go(tmp_path: Path) -> None:
    SweepFolder(tmp_path / "out", named_plan(tmp_path))
    more = named_plan(tmp_path, "[variants]", "[variants]\nfast = { learner.epochs = 1 }")
    SweepFolder(tmp_path / "out", more)
    SweepFolder(tmp_path / "out", named_plan(tmp_path, "seeds = [4, 5, 6]", "seeds = [4, 7]"))
    for old, new in (("epochs = 9", "epochs = 8"), ("particles/nav_6", "particles/nav_3")):
        with pytest.raises(ConfigError, match="holds a sweep that began otherwise"):
            SweepFolder(tmp_path / "out", named_plan(tmp_path, old, new))


def test_outcomes_that_are_kept_count_as_runs_do(tmp_path: Path) -> None:
    plan = named_plan(tmp_path)
    folder = SweepFolder(tmp_path / "out", plan, tmp_path / "kept")
    job = folder.job(1, 0)
    folder.keep_outcome(job)  # nothing is there yet
    folder.prepare(job, plan.settings_of(1))
    finish(job, plan.settings_of(1), plan, lambda *_: 3.0)
    (job.folder / "checkpoints").mkdir()
    folder.keep_outcome(job, drop_checkpoints=True)
    assert not (job.folder / "checkpoints").exists()
    path = tmp_path / "kept" / "small" / "theirs" / "seed_0.json"
    assert json.loads(path.read_text())["final"] == 3.0
    elsewhere = SweepFolder(tmp_path / "elsewhere", plan, tmp_path / "kept")
    states = [elsewhere.state_of(job).state for job in grid_jobs(elsewhere)]
    assert states == ["waiting", "finished", *["waiting"] * 10]
    assert elsewhere.state_of(elsewhere.job(1, 0)).final == 3.0
    other = named_plan(tmp_path, 'learner.kind = "ippo"', 'learner.kind = "happo"')
    changed = SweepFolder(tmp_path / "changed", other, tmp_path / "kept")
    with pytest.raises(ConfigError, match=r"learner.kind \('ippo' there, 'happo' now\); remove it"):
        changed.state_of(changed.job(1, 0))
    kept = json.loads(path.read_text())
    for key, other, told in (
        ("metric", "episode/arrived", "'episode/arrived' there, 'return/mean' now"),
        ("seed", 3, "3 there, 0 now"),
    ):
        path.write_text(json.dumps(kept | {key: other}))
        again = SweepFolder(tmp_path / "elsewhere", plan, tmp_path / "kept")
        with pytest.raises(ConfigError, match=rf"{key} \({told}\); remove it to train again"):
            again.state_of(again.job(1, 0))


def test_a_run_on_a_plateau_keeps_the_checkpoint_that_tells_so(tmp_path: Path) -> None:
    evaluated = "[settings]\neval.every = 100\neval.patience = 1"
    plan = named_plan(tmp_path, "[settings]", evaluated)
    folder = SweepFolder(tmp_path / "out", plan, tmp_path / "kept")
    job = folder.job(0, 0)
    folder.prepare(job, plan.settings_of(0))
    finish(job, plan.settings_of(0), plan, lambda *_: 3.0)
    rows = ["step,return/mean,return/episodes,evaluation/greedy"]
    rows += [f"{step},3.0,1,{2.0 if step % 100 == 0 else ''}" for step in range(25, 226, 25)]
    (job.folder / "metrics.csv").write_text("\n".join(rows) + "\n")
    checkpoints = job.folder / "checkpoints"
    checkpoints.mkdir()
    for step in (100, 225):
        (checkpoints / f"step_{step:012d}.ckpt").write_bytes(b"")
    folder.keep_outcome(job, drop_checkpoints=True)
    assert [path.name for path in checkpoints.iterdir()] == ["step_000000000225.ckpt"]
    without_kept = SweepFolder(tmp_path / "out", plan)
    assert without_kept.state_of(job).state == "finished"


def test_the_table_has_a_part_for_each_task(tmp_path: Path) -> None:
    plan = named_plan(tmp_path)
    folder = SweepFolder(tmp_path / "out", plan)
    for trial in (0, 1):
        job = folder.job(trial, 0)
        folder.prepare(job, plan.settings_of(trial))
        finish(job, plan.settings_of(trial), plan, lambda *_: 3.0)
    small, large = write_table(folder).split("\n## ")[1:]
    assert small.startswith("small\n\n| trial | task | variant | state | return | each seed |")
    assert large.startswith("large\n\n| trial | task | variant | state | episode/arrived |")
    assert (small.count("open"), small.count("waiting")) == (2, 1)
    assert (large.count("open"), large.count("waiting")) == (0, 2)
