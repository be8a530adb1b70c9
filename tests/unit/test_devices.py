"""Jobs on two threads: what they return, what they raise, and who runs when."""

from collections.abc import Generator

import pytest
import torch

from marl.utils.devices import TwoThreads

CPU = torch.device("cpu")


@pytest.mark.parametrize("threads", [1, 2])
def test_both_results_come_back_in_order(threads: int) -> None:
    assert TwoThreads(threads, CPU).both(lambda: "first", lambda: 2) == ("first", 2)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("broken", [0, 1])
def test_an_error_of_either_job_is_raised(threads: int, broken: int) -> None:
    def fail() -> None:
        raise ValueError("mine")

    jobs = [lambda: None, lambda: None]
    jobs[broken] = fail
    pair = TwoThreads(threads, CPU)
    with pytest.raises(ValueError, match="mine"):
        pair.both(*jobs)
    assert pair.both(lambda: 1, lambda: 2) == (1, 2)  # the thread is still there


def counting(name: str, count: int, log: list[str]) -> Generator[None, None, str]:
    for index in range(count):
        log.append(f"{name}{index}")
        yield
    return name


@pytest.mark.parametrize("threads", [1, 2])
def test_jobs_take_turns_and_each_keeps_its_order(threads: int) -> None:
    log: list[str] = []
    jobs = [counting("a", 3, log), counting("b", 1, log), counting("c", 2, log)]
    assert TwoThreads(threads, CPU).in_turns(jobs) == ["a", "b", "c"]
    for name, count in (("a", 3), ("b", 1), ("c", 2)):
        assert [entry for entry in log if entry[0] == name] == [f"{name}{i}" for i in range(count)]
    if threads == 1:
        assert log == ["a0", "b0", "c0", "a1", "c1", "a2"]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_in_a_turn_is_raised(threads: int) -> None:
    def broken() -> Generator[None, None, str]:
        yield
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        TwoThreads(threads, CPU).in_turns([counting("a", 3, []), broken()])


def test_the_first_product_of_a_new_thread_is_that_of_the_other() -> None:
    """So narrow that MKL rounds it otherwise on two threads, if the environment leaves it two."""
    source = torch.Generator().manual_seed(0)
    narrow, wide = (torch.randn(*s, generator=source) for s in ((10, 80), (80, 64)))
    first, second = TwoThreads(2, CPU).both(lambda: narrow @ wide, lambda: narrow @ wide)
    assert torch.equal(first, second)
