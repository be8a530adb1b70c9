"""Sweeps: what is tried, what is refused before anything starts, and how a sweep goes on."""

import io
import json
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from envs import EnvError
from marl import UserError
from marl.config import ConfigError
from marl.config.io import load_config, save_config
from marl.reports.recorded import find_runs
from marl.sweeps.folder import WAITING, Job, JobState, SweepFolder, Trial
from marl.sweeps.plan import Choice, Interval, Plan, Settings, load_plan
from marl.sweeps.runner import InOrder, Schedule, grid_jobs
from marl.sweeps.table import Pace, SweepView, seconds_left, whole_sweep_failed, write_table
from tests.command_line import run

GRID = """
seeds = [0, 1]
[settings]
env.name = "particles/nav_3"
[search]
algorithm = ["imap", "sl"]
"learner.epochs" = { low = 2, high = 6, count = 3 }
"""
SEARCH = """
method = "optuna"
trials = 12
seeds = [0, 1, 2]
evaluation_seeds = [7, 8]
[settings]
env.name = "particles/nav_3"
[search]
network.hidden_sizes = [[8], [16, 16]]
learner.epochs = { low = 1, high = 30 }
learner.learning_rate = { low = 1e-4, high = 1e-1, log = true }
"""


def plan_of(folder: Path, content: str) -> Plan:
    path = folder / "sweep.toml"
    path.write_text(content)
    return load_plan(path)


def test_a_grid_is_all_combinations(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    assert plan.num_trials == 6
    assert [tuple(plan.settings_of(trial).values()) for trial in range(6)] == [
        *(("imap", 2), ("imap", 4), ("imap", 6), ("sl", 2), ("sl", 4), ("sl", 6))
    ]
    config = plan.config_of(plan.settings_of(4), 9)
    assert (config.algorithm, config.learner.epochs, config.seed) == ("sl", 4, 9)
    assert (config.env.name, config.threads) == ("particles/nav_3", 1)
    jobs = grid_jobs(SweepFolder(tmp_path / "out", plan))
    assert [(job.seed, job.trial) for job in jobs[:7]] == [*((0, n) for n in range(6)), (1, 0)]


def test_the_base_is_a_file_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("seed = 3\ntotal_steps = 500\nthreads = 4\n")
    with pytest.raises(ConfigError, match="seed is not set by itself; give seeds"):
        plan_of(tmp_path, 'config = "base.toml"')
    (tmp_path / "base.toml").write_text("total_steps = 500\nthreads = 4\nlearner.epochs = 7\n")
    plan = plan_of(tmp_path, 'config = "base.toml"\n[settings]\nlearner.epochs = 2')
    config = plan.config_of({}, 0)
    assert (config.total_steps, config.threads, config.learner.epochs) == (500, 4, 2)
    assert (plan.num_trials, plan.settings_of(0)) == (1, {})


def test_ranges() -> None:
    def interval(low: float, high: float, *, log: bool, count: int, whole: bool) -> Interval:
        return Interval("x", low, high, log=log, count=count, whole=whole)

    assert interval(0.0, 1.0, log=False, count=3, whole=False).grid() == [0.0, 0.5, 1.0]
    logarithmic = interval(1e-4, 1e-2, log=True, count=3, whole=False)
    assert logarithmic.grid() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert interval(1, 3, log=False, count=9, whole=True).grid() == [1, 2, 3]
    rng = random.Random(0)
    drawn = [logarithmic.draw(rng) for _ in range(400)]
    assert all(1e-4 <= value <= 1e-2 for value in drawn)
    # Half of a logarithmic range lies below its geometric middle; 400 draws vary by 10 each way.
    assert 160 < sum(value < 1e-3 for value in drawn) < 240
    assert {interval(1, 3, log=False, count=0, whole=True).draw(rng) for _ in range(40)} == {
        1,
        2,
        3,
    }
    assert {Choice("x", (1, "a")).draw(rng) for _ in range(40)} == {1, "a"}


def test_random_trials_are_functions_of_their_number(tmp_path: Path) -> None:
    content = SEARCH.replace('"optuna"', '"random"')
    plan = plan_of(tmp_path, content)
    again = plan_of(tmp_path, content.replace("trials = 12", "trials = 20"))
    other = plan_of(tmp_path, content.replace("seeds", "search_seed = 1\nseeds", 1))
    assert [plan.settings_of(k) for k in range(12)] == [again.settings_of(k) for k in range(12)]
    assert plan.settings_of(0) != plan.settings_of(1)
    assert plan.settings_of(0) != other.settings_of(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("algorithm", "algoritm"), r"unknown key algoritm; did you mean algorithm\?"),
        (('"sl"', '"sll"'), r"algorithm: got 'sll', expected one of .*did you mean 'sl'\?"),
        (('["imap", "sl"]', "[1]"), r"algorithm: got 1, expected one of"),
        (('["imap", "sl"]', '"sl"'), r"search.algorithm: got 'sl', expected a list of values or a"),
        (('["imap", "sl"]', "[]"), r"search.algorithm: got \[\], expected a list"),
        (('"sl"', '"sl", "imap"'), r"search.algorithm: 'imap' stands twice"),
        (("learner.epochs", "learner.epoch"), r"unknown key learner.epoch; did you mean"),
        (("low = 2", "low = 0"), r"learner.epochs: got 0, expected a number from 1 to 1000"),
        (("low = 2", "low = 2.5"), r"learner.epochs is a whole number, and so are its ends"),
        (("low = 2, ", ""), r"there is no search.learner.epochs.low"),
        (("low = 2", "low = 6"), r"learner.epochs: low must be less than high"),
        (("low = 2", 'low = "a"'), r"search.learner.epochs.low: got 'a' \(str\), expected float"),
        (("count = 3", "coumt = 3"), r"unknown key search.learner.epochs.coumt; did you mean"),
        ((", count = 3", ""), r"on a grid a range says how many values it has, e.g. count = 5"),
        (("low = 2", "log = true, low = 0"), r"low: a logarithmic range begins above 0"),
        (("seeds = [0, 1]", "seeds = []"), r"seeds: got \[\], expected a list of int, at least 1"),
        (("seeds = [0, 1]", "seeds = [0, 0]"), r"seeds: 0 stands twice"),
        (("seeds = [0, 1]", "seeds = [0]\nevaluation_seeds = [0]"), r"evaluation_seeds: 0 also in"),
        (("seeds = [0, 1]", 'seeds = [0]\nmethod = "grd"'), r"method: got 'grd', .*'grid'\?"),
        (("seeds = [0, 1]", "trials = 3"), r"trials: a grid has as many as combinations"),
        (("seeds = [0, 1]", 'method = "random"'), r"trials: say how many method = 'random' tries"),
        (("seeds = [0, 1]", "sedes = [0, 1]"), r"unknown key sedes; did you mean seeds\?"),
        (("seeds = [0, 1]", 'config = "no.toml"'), r"no.toml: no such config file"),
        (('"particles/nav_3"', '"particle/nav_3"'), r"particle"),
        (("[search]", "[search]\nseed = [1]"), r"seed is not searched; give seeds"),
        (
            ("[search]", '[search]\nreward.mixer = ["two_layer"]'),
            r'reward.mixer: "two_layer" has no',
        ),
    ],
)
def test_what_is_wrong_is_told_before_anything_starts(
    change: tuple[str, str], message: str, tmp_path: Path
) -> None:
    old, new = change
    assert old in GRID
    content = GRID.replace(old, new)
    path = tmp_path / "sweep.toml"
    path.write_text(content)
    with pytest.raises((UserError, EnvError), match=message):
        load_plan(path)
    assert run("sweep", path, "--out", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()


def test_a_value_may_need_another_one_of_the_search(tmp_path: Path) -> None:
    # A two-layer mixer contradicts the base, and goes with one of the forms that are searched.
    search = '[search]\nreward.mixer = ["two_layer"]\nreward.local_form = ["complete", "plain"]\n'
    with pytest.raises(ConfigError, match=r"trial 0: reward.mixer"):
        plan_of(tmp_path, search)
    plan = plan_of(tmp_path, f'method = "optuna"\ntrials = 2\n{search}')
    assert plan.num_trials == 2


def test_code_of_a_file_must_be_trusted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text('[search]\nenv.name = ["particles/nav_3", "evil:Env"]\n')
    assert run("sweep", path, "--out", tmp_path / "out") == 1
    assert "names code that would be imported and run: env.name = 'evil:Env'" in (
        capsys.readouterr().err.replace("\n", " ")
    )


def finish(
    job: Job, tried: Settings, plan: Plan, returns: Callable[[Settings, int], float]
) -> None:
    """Make the files of a finished run."""
    config = plan.config_of(tried, job.seed)
    job.folder.mkdir(parents=True)
    save_config(config, job.folder / "config.toml")
    row = f"{config.total_steps},{returns(tried, job.seed)!r},1\n"
    (job.folder / "metrics.csv").write_text(f"step,return/mean,return/episodes\n{row}")


def by_epochs(tried: Settings, seed: int) -> float:
    """A return that is best at 20 epochs and a rate of .01; seeds differ a little."""
    rate = math.log10(tried["learner.learning_rate"]) + 2
    return -abs(tried["learner.epochs"] - 20) - 5 * rate**2 + 0.1 * seed


def test_a_folder_knows_its_sweep(tmp_path: Path) -> None:
    SweepFolder(tmp_path / "out", plan_of(tmp_path, GRID))
    more = plan_of(tmp_path, GRID.replace("[0, 1]", "[0, 1, 2]\nevaluation_seeds = [9]"))
    SweepFolder(tmp_path / "out", more)
    other = plan_of(tmp_path, GRID.replace('"imap"', '"slf"'))
    with pytest.raises(
        ConfigError,
        match=r"search\.algorithm\.values \(\['imap', 'sl'\] there, \['slf', 'sl'\] now\)",
    ):
        SweepFolder(tmp_path / "out", other)
    with pytest.raises(ConfigError, match="holds something else than a sweep"):
        SweepFolder(tmp_path, other)
    (tmp_path / "out" / "sweep.json").write_text("[1")
    with pytest.raises(ConfigError, match="is damaged"):
        SweepFolder(tmp_path / "out", more)


def test_the_table_of_a_grid(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    folder = SweepFolder(tmp_path / "out", plan)

    def returns(tried: Settings, seed: int) -> float:
        return tried["learner.epochs"] + seed + (10 if tried["algorithm"] == "sl" else 0)

    for job in grid_jobs(folder)[:8]:
        finish(job, plan.settings_of(job.trial), plan, returns)
    waiting = InOrder(folder, grid_jobs(folder))
    assert [waiting.next() is not None for _ in range(5)] == [True] * 4 + [False]
    write_table(folder)
    rows = (folder.path / "trials.csv").read_text().splitlines()
    assert rows[0] == "trial,algorithm,learner.epochs,state,value,low,high,seeds,finals"
    assert rows[1] == "0,imap,2,finished,2.5,,,0 1,2.0 3.0"
    assert rows[3] == "2,imap,6,open,6.0,,,0,6.0"
    page = (folder.path / "trials.md").read_text().splitlines()
    assert "| 5 | sl | 6 | open | 16.00 | 0: 16.00 |" in page
    best = folder.best(folder.trials())
    assert best is not None
    assert best.number == 1  # the better ones lack a seed
    assert page[-1].startswith("Trial 1 is the best of 6 on the seeds it was chosen by")


def test_runs_that_fail_are_told_and_tried_again(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    folder = SweepFolder(tmp_path / "out", plan)
    job = folder.job(2, 0)
    finish(job, plan.settings_of(2), plan, lambda *_: 1.0)
    text = (job.folder / "metrics.csv").read_text()
    (job.folder / "metrics.csv").write_text(text.replace(f"{10**6}", "500"))
    (job.folder / "error.txt").write_text("Traceback\nValueError: it | broke\n")
    folder.failed[folder.job(3, 1).folder] = "no such module"
    trials = folder.trials()
    assert [trial.state for trial in trials[1:4]] == ["waiting", "failed", "failed"]
    assert whole_sweep_failed(trials).startswith("2 of 6 trials have failed runs")
    page = write_table(folder)
    assert r"- trial 2, seed 0: ValueError: it \| broke" in page
    assert "- trial 3, seed 1: no such module" in page
    jobs = InOrder(folder, [job])
    assert jobs.next() is not None


def test_what_is_shown_while_it_runs(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    folder = SweepFolder(tmp_path / "out", plan)
    for job in grid_jobs(folder)[:2]:
        finish(job, plan.settings_of(job.trial), plan, lambda tried, _: tried["learner.epochs"])
    folder.failed[grid_jobs(folder)[2].folder] = "it broke"
    lines = io.StringIO()
    with SweepView(folder, 2, Console(file=lines)) as view:
        view.changed(grid_jobs(folder)[1], "")
        view.changed(grid_jobs(folder)[2], "it broke")
    assert lines.getvalue().splitlines() == [
        "trial 1, seed 0 finished, 4.00; 2 of 12 runs finished",
        "trial 2, seed 0 failed: it broke; 2 of 12 runs finished",
    ]
    live = io.StringIO()
    console = Console(file=live, force_terminal=True, width=140, height=8, _environ={})
    with SweepView(folder, 2, console):
        pass
    shown = live.getvalue()
    assert "learner.epochs" in shown
    assert "2 open, 1 failed, 3 waiting (3 not shown); ? left at this speed" in shown


def test_the_time_that_is_left() -> None:
    def begun(steps: int, seconds: float) -> JobState:
        return JobState(state="stopped", steps=steps, total_steps=100, seconds=seconds)

    def trial(*jobs: JobState) -> Trial:
        return Trial(number=0, tried={}, jobs=dict(enumerate(jobs)))

    usual = Pace.of([begun(50, 10.0), begun(50, 30.0), WAITING])
    assert (usual.seconds, usual.steps) == (0.4, 100)
    assert seconds_left(trial(WAITING, WAITING), usual) == 80.0
    # Its own pace is .1 seconds a step: 60 steps of the run that has begun and 100 of the other.
    assert seconds_left(trial(begun(40, 4.0), WAITING), usual) == pytest.approx(16.0)
    assert math.isnan(seconds_left(trial(WAITING), Pace.of([WAITING])))


def finished_by(
    folder: SweepFolder, schedule: Callable[[], Schedule], killed: Callable[[], bool]
) -> None:
    """Finish all that a schedule asks for; a kill loses the schedule, before or after a run."""
    while True:
        asked = schedule()
        while not killed():
            chosen = asked.next()
            if chosen is None:
                return
            job, tried = chosen
            if killed():
                break
            finish(job, tried, folder.plan, by_epochs)
            if killed():
                break
            asked.ended(job, False)


def test_optuna_goes_on_after_kills_to_the_same_table(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    from marl.sweeps.adaptive import Adaptive

    plan = plan_of(tmp_path, SEARCH)
    alone, killed = (SweepFolder(tmp_path / name, plan) for name in ("alone", "killed"))
    finished_by(alone, lambda: Adaptive(alone), lambda: False)
    rng = random.Random(0)
    kills = 0

    def is_killed() -> bool:
        nonlocal kills
        kills += rng.random() < 0.15
        return rng.random() < 0.15

    def again() -> Adaptive:
        schedule = Adaptive(killed)
        if rng.random() < 0.3:  # a kill while a trial is chosen leaves one that has no settings
            schedule._study(99).ask()
        return schedule

    finished_by(killed, again, is_killed)
    assert kills > 5
    assert write_table(killed) == write_table(alone)
    trials = alone.trials()
    states = [trial.state for trial in trials]
    assert set(states) == {"finished", "pruned"}
    # Those that were ended early were worse than those that were not.
    whole = [t.value for t in trials if t.state == "finished"]
    assert max(t.value for t in trials if t.state == "pruned") < sorted(whole)[len(whole) // 2]
    assert all(len(t.finals) == 3 for t in trials if t.state == "finished")
    assert [t.tried and t.tried["network.hidden_sizes"] in ([8], [16, 16]) for t in trials]
    best = alone.best(trials)
    assert best is not None
    job = alone.evaluation(best.number, 7)
    assert best.tried is not None
    finish(job, best.tried, plan, by_epochs)
    assert f"Trial {best.number} with evaluation seeds" in write_table(alone)
    assert job.folder not in find_runs(alone.path)  # compared are the seeds of the search
    assert alone.job(best.number, 0).folder in find_runs(alone.path)


def test_optuna_tells_a_trial_whose_settings_contradict_each_other(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    from marl.sweeps.adaptive import Adaptive

    forms = 'reward.mixer = ["two_layer"]\nreward.local_form = ["complete", "plain"]'
    plan = plan_of(tmp_path, f'method = "optuna"\ntrials = 8\n[search]\n{forms}\n')
    folder = SweepFolder(tmp_path / "out", plan)
    schedule = Adaptive(folder)
    while chosen := schedule.next():
        finish(chosen[0], chosen[1], plan, lambda *_: 1.0)
        schedule.ended(chosen[0], False)
    trials = folder.trials()
    assert {(t.tried or {})["reward.local_form"]: t.state for t in trials} == {
        "complete": "refused",
        "plain": "finished",
    }
    assert 'set reward.local_form = "plain"' in write_table(folder)


def test_two_trials_at_a_time_are_two_trials(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    from marl.sweeps.adaptive import Adaptive

    folder = SweepFolder(tmp_path / "out", plan_of(tmp_path, SEARCH))
    schedule = Adaptive(folder)
    first, second = schedule.next(), schedule.next()
    assert first is not None
    assert second is not None
    assert (first[0].trial, second[0].trial) == (0, 1)
    array = Adaptive(folder, only=5).next()  # what another process of an array does
    assert array is not None
    assert array[0].trial == 5
    finish(first[0], first[1], folder.plan, by_epochs)
    schedule.ended(first[0], False)
    third = schedule.next()
    assert third is not None
    assert (third[0].trial, third[0].seed) == (0, 1)
    schedule.ended(third[0], True)  # it failed: no more of trial 0 in this sweep
    fourth = schedule.next()
    assert fourth is not None
    assert fourth[0].trial == 2


def test_a_missing_optuna_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    path = tmp_path / "sweep.toml"
    path.write_text(SEARCH)
    assert run("sweep", path, "--out", tmp_path / "out") == 1
    assert "pip install -c constraints.txt '.[sweep]'" in capsys.readouterr().err.replace("\n", " ")


def test_the_settings_of_a_trial_are_a_file_for_train(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, GRID)
    folder = SweepFolder(tmp_path / "out", plan)
    job = folder.job(4, 1)
    folder.prepare(job, plan.settings_of(4))
    saved = load_config(job.settings)
    assert (saved.algorithm, saved.learner.epochs) == ("sl", 4)
    assert json.loads((folder.path / "sweep.json").read_text())["trials"] == 6
