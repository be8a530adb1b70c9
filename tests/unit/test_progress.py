"""The progress display: plain lines in a log, one panel on a terminal, right numbers in both."""

import dataclasses
import io
import math

import pytest
from rich.console import Console

from envs import Fact, make_env
from marl.utils.progress import Progress, duration, sparkline, time_split


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(console: Console, seconds: list[float], start_steps: int = 0) -> str:
    """Return what is shown while 1,000 steps finish at each of the given seconds."""
    clock = Clock()
    with Progress(10_000, "a title", console, clock) as progress:
        for index, now in enumerate(seconds, start=1):
            clock.now = now
            progress.update(
                {
                    "steps": start_steps + 1000 * index,
                    "return/mean": 10.0 * index,
                    "preference/accuracy": 0.75,
                    "time/physics": 3.0,
                    "time/policy": 1.0,
                }
            )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def log_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def test_a_log_gets_a_line_every_ten_seconds_and_a_last_one() -> None:
    lines = run(log_console(), [1.0, 2.0, 11.0, 12.0]).splitlines()
    assert lines[0] == "a title"
    # The updates at 1 s and 11 s are due; the one at 2 s is not; the one at 12 s is the last.
    assert [line.split()[1] for line in lines[1:]] == ["1,000", "3,000", "4,000"]


def test_a_line_holds_every_fact_even_on_a_narrow_terminal() -> None:
    # 1,000 steps in 2 s are 500 steps/s; 8,000 steps are left: 16 s. Physics 3 of 4 seconds.
    last = run(log_console(), [2.0, 4.0]).splitlines()[-1]
    assert last == (
        "steps 2,000 / 10,000  speed 500 steps/s  left 16s  return 20  preferences 75% right"
        "  time physics 75%  policy 25%"
    )


def test_a_reward_learned_from_returns_tells_how_they_correlate() -> None:
    console = log_console()
    with Progress(10_000, "a title", console) as progress:
        progress.update({"steps": 1000.0, "regression/correlation": 0.934})
    assert isinstance(console.file, io.StringIO)
    assert "rewards correlate 0.93 with returns" in console.file.getvalue()


def test_a_resumed_run_counts_its_own_steps_only() -> None:
    last = run(log_console(), [2.0, 4.0], start_steps=6000).splitlines()[-1]
    assert last.startswith("steps 8,000 / 10,000  speed 500 steps/s  left 4s")


def test_the_same_step_is_not_printed_twice() -> None:
    assert len(run(log_console(), [1.0]).splitlines()) == 2


def test_the_first_iteration_which_may_compile_is_not_part_of_the_speed() -> None:
    # The first 1,000 steps took 100 s, the second 2 s: 500 steps/s, and 16 s for the rest.
    lines = run(log_console(), [100.0, 102.0]).splitlines()
    assert lines[1].startswith("steps 1,000 / 10,000  return 10")
    assert lines[2].startswith("steps 2,000 / 10,000  speed 500 steps/s  left 16s")


def test_unknown_values_are_left_out() -> None:
    console = log_console()
    with Progress(10, "a title", console=console) as progress:
        progress.update({"steps": 1.0, "return/mean": math.nan})
    assert isinstance(console.file, io.StringIO)
    assert "return" not in console.file.getvalue()
    assert "nan" not in console.file.getvalue().replace("nan steps/s", "")


def test_open_questions_are_said_at_once_where_training_may_wait_for_them() -> None:
    console, clock = log_console(), Clock()
    with Progress(10_000, "a title", console, clock) as progress:
        for index, is_open in enumerate((0, 2, 0), start=1):
            clock.now = index / 100  # long before the next line is due
            progress.update({"steps": 1000 * index, "labeller/open": is_open}, at_once=True)
        clock.now = 1.0
        progress.update({"steps": 4000, "labeller/open": 3.0})
        assert isinstance(console.file, io.StringIO)
        lines = console.file.getvalue().splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["1,000", "2,000"]
    assert "people 2 open questions" in lines[1]


def test_a_terminal_gets_a_panel_with_a_sparkline() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    shown = run(console, [1.0, 2.0, 3.0])
    assert "a title" in shown
    assert "▁▅█" in shown  # 10, 20, 30: lowest, round(3.5) = 4 of 0..7, highest
    assert "physics 75%" in shown


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(KeyError), Progress(10, "a title", console=log_console()) as progress:
        progress.update({})


def test_sparkline() -> None:
    assert sparkline([]) == ""
    assert sparkline([2.0, 2.0]) == "▄▄"
    assert sparkline([-1.0, 1.0]) == "▁█"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(7.4, "7s"), (59.6, "1m00s"), (185, "3m05s"), (7500, "2h05m"), (math.nan, "?")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_time_split_shares_sum_to_one() -> None:
    assert time_split({"time/physics": 1.0, "time/policy": 3.0}) == [
        ("physics", 0.25),
        ("policy", 0.75),
    ]
    assert time_split({}) == []


def test_a_resumed_run_counts_its_own_steps_and_no_time_is_negative() -> None:
    clock = Clock()
    console = Console(file=io.StringIO(), width=200)
    progress = Progress(1_000, "title", console=console, clock=clock)
    with progress:
        progress.update({"steps": 900.0})  # how long these took is not known
        clock.now += 20.0
        progress.update({"steps": 950.0})
        clock.now += 20.0
        progress.update({"steps": 1_050.0})  # 150 steps in 40 s, and nothing is left
    first, second, third = console.file.getvalue().splitlines()[1:]  # type: ignore[attr-defined]
    assert first == "steps 900 / 1,000"
    assert "speed 2 steps/s  left 20s" in second  # 50 steps in 20 s leave 50 / 2.5 s
    assert "speed 4 steps/s  left 0s" in third


def test_the_success_rate_is_shown_and_until_then_why_there_is_no_return() -> None:
    console, clock = log_console(), Clock()
    facts = (Fact(name="won", meaning="won", is_success=True), Fact(name="health", meaning="left"))
    spec = dataclasses.replace(make_env("probe/masked", 2).spec, facts=facts, max_steps=1_200)
    with Progress(10_000, "a title", console=console, clock=clock) as progress:
        progress.begin(spec)
        progress.update({"steps": 100.0, "return/mean": math.nan, "episode/won": math.nan})
        clock.now = 20.0
        told = {"episode/won": 0.375, "episode/health": 0.5}
        progress.update({"steps": 200.0, "return/mean": 3.0} | told)
        clock.now = 40.0  # no episode ended in this one: what was known before is shown
        progress.update({"steps": 300.0, "return/mean": math.nan, "episode/won": math.nan})
    assert isinstance(console.file, io.StringIO)
    title, first, second, third = console.file.getvalue().splitlines()
    assert title == "a title"
    assert first == (
        "steps 100 / 10,000  return no episode has ended yet: it takes up to 1,200 steps of every "
        "environment"
    )
    assert second.endswith("return 3  won 38%")
    assert third.endswith("return 3  won 38%")
    assert progress.no_episode == ""


def test_a_run_that_never_was_is_not_announced() -> None:
    console = log_console()
    with pytest.raises(OSError, match="full"), Progress(10, "a title", console=console):
        raise OSError("the disk is full")
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == ""
