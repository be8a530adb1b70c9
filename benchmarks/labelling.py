"""What asking a language model costs beside the model: overhead of questions, and of replay.

    python -m benchmarks.labelling

A stand-in server answers each question after 50 ms, so the ideal for 64 questions at once is 50 ms
and one for 64 at a time in n rounds is n times that. Replay reads 1,000 kept pairs from the store.
"""

import argparse
import multiprocessing
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.queues import Queue
from pathlib import Path

from marl.preferences.llm import LlmLabeller
from tests.llm_cases import make, pairs_of
from tests.llm_server import ModelServer

DELAY = 0.05
AT_ONCE = 64
PAIRS = 1_000


def seconds(work: Callable[[], object]) -> float:
    """Return how long some work takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def warmed(address: str, folder: Path, ask: str) -> LlmLabeller:
    """Return a labeller that knows the server and has its connections open."""
    labeller = make(address, folder, ask=ask, concurrency=AT_ONCE, timeout=30.0, deadline=60.0)
    labeller.start()
    ask_about(labeller, AT_ONCE, offset=5e3)
    return labeller


def ask_about(labeller: LlmLabeller, count: int, offset: float) -> None:
    """Ask pairs of `count` different episodes; `offset` makes them new ones."""
    numbers = [offset + n for n in range(count)]
    labels = labeller(pairs_of(numbers[: count // 2], [-n for n in numbers[count // 2 :]]))
    if labels.isnan().any():
        raise RuntimeError(f"not all questions were answered: {labeller.metrics()}")


def serve(addresses: "Queue[str]") -> None:
    """Answer questions until the process is ended; first tell the address."""
    with ModelServer(delay=DELAY) as server:
        addresses.put(server.base_url)
        threading.Event().wait()


def concurrent_seconds(questions: int, repeats: int) -> float:
    """Return how long questions take, 64 at a time, each on the disk when it is answered."""
    context = multiprocessing.get_context("spawn")
    addresses = context.Queue()
    process = context.Process(target=serve, args=(addresses,), daemon=True)
    process.start()
    with tempfile.TemporaryDirectory() as scratch:
        labeller = warmed(addresses.get(), Path(scratch), "pointwise")
        taken = [
            seconds(partial(ask_about, labeller, questions, offset=questions * repeat))
            for repeat in range(repeats)
        ]
        labeller.close()
    process.kill()
    return min(taken)


def replay_seconds(ask: str) -> float:
    """Return how long 1,000 pairs of different episodes take that were asked before, best of
    three."""
    first = [float(n) for n in range(PAIRS)]
    pairs = pairs_of(first, [-n - 1.0 for n in first])
    taken = []
    with tempfile.TemporaryDirectory() as scratch, ModelServer() as server:
        for offline in (False, True, True, True):
            labeller = make(
                server.base_url,
                Path(scratch),
                ask=ask,
                offline=offline,
                timeout=30.0,
                deadline=60.0,
            )
            started = time.perf_counter()
            labels = labeller(pairs)
            if offline:
                taken.append(time.perf_counter() - started)
            if labels.isnan().any():
                raise RuntimeError(f"not all pairs were answered: {labeller.metrics()}")
            labeller.close()
    return min(taken)


def main() -> None:
    """Print the rows of the table as they come, the best of ten or of three (replay)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="also write the table there")
    out = parser.parse_args().out
    rows = [
        f"`python -m benchmarks.labelling`, {os.cpu_count()} cores under a load average of "
        f"{os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}; for the replay the stand-in server is off.",
        "",
        "| what | ideal | measured | times the ideal |",
        "| --- | --- | --- | --- |",
    ]
    for rounds in (1, 8):
        ideal = DELAY * rounds
        taken = concurrent_seconds(AT_ONCE * rounds, repeats=10)
        rows.append(
            f"| {AT_ONCE * rounds} questions of {DELAY * 1e3:.0f} ms, {AT_ONCE} at a time "
            f"| {ideal:.2f} s | {taken:.3f} s | {taken / ideal:.2f} |"
        )
        print(rows[-1], flush=True)
    for ask in ("pointwise", "pairwise"):
        taken = replay_seconds(ask)
        rows.append(f"| replay of {PAIRS:,} kept pairs, {ask} | - | {taken:.2f} s | - |")
        print(rows[-1], flush=True)
    table = "\n".join(rows)
    if out is not None:
        out.write_text(f"# Labelling with a language model\n\n{table}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
