"""Runs of several processes: over gloo, under torchrun, killed, and wrongly started."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import marl
from benchmarks.trials import differences, flags
from marl import ConfigError, UserError
from marl.evaluation import Evaluation, evaluate
from marl.preferences.llm.shared import EPISODES_APART
from marl.utils.checkpoint import list_checkpoints
from marl.utils.distributed import ProcessRanks, joined, one_voice
from marl.utils.launch import read_launch
from marl.utils.plugins import PluginError
from marl.utils.ranks import PeerError, Ranks
from tests import two_halves
from tests.llm_server import ModelServer
from tests.processes import (
    CALLS_BEFORE_DEATH,
    ROOT,
    SIX_ITERATIONS,
    fatal,
    free_port,
    in_processes,
)
from tests.ranks import in_ranks

SMALL = SIX_ITERATIONS | {"preferences.labeller": "tests.processes:fatal"}


def everything(ranks: Ranks) -> dict[str, Any]:
    """Return what two processes compute, and what they tell one another."""
    assert isinstance(ranks, ProcessRanks)
    found: dict[str, Any] = dict(two_halves.work(ranks))
    own = {"rank": ranks.rank, "tensor": torch.full((2, ranks.rank + 1), True), "none": None}
    found["gathered"] = ranks.gather(own)
    found["any"] = [ranks.any(ranks.rank == 1), ranks.any(False)]
    try:
        with one_voice(ranks), warnings.catch_warnings(record=True) as caught:
            found["shown"] = warnings.formatwarning("w", UserWarning, "f", 1)
            print("told by process 0 alone", flush=True)
            raise ConfigError("both have it")
    except ConfigError:
        found["told"] = True
    except SystemExit as end:
        found["told"] = end.code
    assert not caught
    return found


def test_two_processes_come_to_what_one_comes_to_and_speak_with_one_voice(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = in_processes(2, "tests.contract.test_processes:everything", tmp_path)
    whole = two_halves.work(Ranks.single())
    two_halves.assert_agree({name: first[name] for name in whole}, whole, 1e-6)
    for name in whole:
        assert torch.equal(first[name], second[name]), name
    for found in (first, second):
        assert [part["rank"] for part in found["gathered"]] == [0, 1]
        assert found["gathered"][1]["tensor"].tolist() == [[True, True], [True, True]]
        assert found["any"] == [True, False]
    assert sorted([first["told"], second["told"]], key=str) == [1, True]
    assert second["shown"].endswith("process 1: w\n") or "process 1: w" in second["shown"]
    assert capfd.readouterr().out.count("told by process 0 alone") == 1


def trained(ranks: Ranks, folder: Path, resume: bool = False) -> None:
    for _ in marl.train(marl.load_config(overrides=SMALL), folder, resume=resume, ranks=ranks):
        pass


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an undisturbed run of two processes, which are threads here."""
    folder = tmp_path_factory.mktemp("runs") / "alone"
    in_ranks(2, lambda ranks: trained(ranks, folder))
    return folder


def test_a_process_that_is_killed_is_replaced_and_the_run_ends_as_if_it_had_not_been(
    alone: Path, tmp_path: Path
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "1"]
    run = subprocess.run(
        [*torchrun, "-m", "marl", "train", *flags(SMALL)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("exitcode: -9") == 1
    assert run.stderr.count("error: ") == 1
    assert run.stdout.count("done; look at") == 1
    (folder,) = (tmp_path / "runs").iterdir()  # found again, without --run-dir
    assert differences(alone, folder) == []
    assert len(list_checkpoints(folder / "checkpoints")) == 3
    assert len(list((folder / "checkpoints").glob("*.process1"))) == 3


def test_a_checkpoint_that_lacks_a_part_is_none(alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(alone, folder)
    newest = list_checkpoints(folder / "checkpoints")[0]
    newest.with_suffix(".process1").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"skipping a damaged checkpoint: .*process1"):
        in_ranks(2, lambda ranks: trained(ranks, folder, resume=True))
    assert differences(alone, folder) == []


def test_another_number_of_processes_is_told_what_to_type(alone: Path) -> None:
    with pytest.raises(ConfigError, match=r"was saved by 2 .* --nproc-per-node 2 -m marl resume"):
        trained(Ranks.single(), alone, resume=True)


def test_a_labeller_that_fails_in_one_process_ends_all_with_the_run_saved(
    alone: Path, tmp_path: Path
) -> None:
    def work(ranks: Ranks, calls: int, resume: bool) -> None:
        def failing(pairs: marl.EpisodePairs) -> torch.Tensor:
            nonlocal calls
            calls -= 1
            if ranks.rank == 1 and calls < 0:
                raise RuntimeError("no more")
            return fatal(pairs)

        settings = SMALL | {"preferences.labeller": "return", "checkpoint_every": 10**6}
        config = marl.load_config(overrides=settings)
        run = marl.train(config, tmp_path / "run", labeller=failing, resume=resume, ranks=ranks)
        if resume:
            assert len(list(run)) == 3
            return
        error, said = (PluginError, "no more") if ranks.rank else (PeerError, "another process")
        with pytest.raises(error, match=said):
            list(run)

    in_ranks(2, lambda ranks: work(ranks, CALLS_BEFORE_DEATH, resume=False))
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.name == "step_000000000300.ckpt"
    in_ranks(2, lambda ranks: work(ranks, 10**6, resume=True))
    assert differences(alone, tmp_path / "run") == []


def test_process_0_asks_a_language_model_for_all_within_one_budget(tmp_path: Path) -> None:
    with ModelServer() as server:
        llm: dict[str, Any] = {
            "preferences.labeller": "llm",
            "preferences.queries_per_iteration": 3,
            "preferences.max_labels": 7,
            "preferences.holdout_every": 2,
            "preferences.tie_break": ["length+"],
            "preferences.llm.base_url": server.base_url,
            "preferences.llm.model": "stand-in",
            "preferences.llm.preflight": "off",
            "preferences.llm.cache": str(tmp_path / "cache.sqlite"),
            "preferences.llm.max_calls": 9,
            "preferences.llm.at_cap": "fallback",
            "preferences.llm.fallback": "return",
        }
        config = marl.load_config(overrides=SMALL | llm)

        def work(ranks: Ranks) -> tuple[dict[str, float], list[float], list[float]]:
            trainer = marl.Trainer(config, ranks=ranks)
            for _ in range(config.num_iterations):
                metrics = trainer.iterate()
            assert trainer.feedback is not None
            first, second, labels = trainer.feedback.buffer.standing()
            replay = trainer.feedback.replay
            gaps = replay.episodes(first).returns - replay.episodes(second).returns
            assert trainer.feedback.budget.asked == 7
            return metrics, gaps.tolist(), labels.tolist()

        one, other = in_ranks(2, work)
        assert len(server.asked) == sum(server.answered.values()) == 9
    assert one[0].keys() == other[0].keys()
    assert one[0]["labeller/llm_spent_calls"] == other[0]["labeller/llm_spent_calls"] == 9
    assert one[0]["labeller/llm_fallbacks"] > 0
    told = len(one[2]) + len(other[2])
    assert told == one[0]["preference/kept_answers"] >= 5
    for _, gaps, labels in (one, other):
        assert labels
        assert all((label > 0.5) == (gap > 0) for gap, label in zip(gaps, labels, strict=True))
    with closing(sqlite3.connect(tmp_path / "cache.sqlite")) as cache:
        numbers = [row[0] for row in cache.execute("SELECT first_number FROM labels")]
    assert {number // EPISODES_APART for number in numbers} == {0, 1}
    assert len(numbers) == 7


def test_a_cap_that_ends_the_run_ends_it_in_all_processes(tmp_path: Path) -> None:
    with ModelServer() as server:
        llm: dict[str, Any] = {
            "preferences.labeller": "llm",
            "preferences.queries_per_iteration": 2,
            "preferences.llm.base_url": server.base_url,
            "preferences.llm.model": "stand-in",
            "preferences.llm.preflight": "off",
            "preferences.llm.cache": str(tmp_path / "cache.sqlite"),
            "preferences.llm.max_calls": 6,
            "preferences.llm.at_cap": "abort",
        }
        config = marl.load_config(overrides=SMALL | llm | {"checkpoint_every": 10**6})

        def work(ranks: Ranks) -> None:
            error, said = (
                (PeerError, "another") if ranks.rank else (ConfigError, "a cap is reached")
            )
            with pytest.raises(error, match=said):
                list(marl.train(config, tmp_path / "run", ranks=ranks))

        in_ranks(2, work)
    (saved,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert saved.with_suffix(".process1").exists()
    assert not (tmp_path / "run" / "crash").exists()


def test_people_are_asked_about_episodes_of_process_0(tmp_path: Path) -> None:
    people: dict[str, Any] = {
        "preferences.labeller": "people",
        "preferences.queries_per_iteration": 1,
        "preferences.holdout_every": 2,
    }
    config = marl.load_config(overrides=SMALL | people)

    def work(ranks: Ranks) -> tuple[bool, dict[str, float]]:
        trainer = marl.Trainer(config, tmp_path, ranks=ranks)
        for _ in range(3):
            metrics = trainer.iterate()
        assert trainer.feedback is not None
        assert trainer.feedback.budget.asked > 0
        return trainer.people is None, metrics

    (one, metrics), (other, same) = in_ranks(2, work)
    assert (one, other) == (False, True)
    assert metrics["labeller/open"] == same["labeller/open"] > 0


def test_all_processes_evaluate(alone: Path) -> None:
    def work(ranks: Ranks) -> Evaluation:
        policy = marl.load(alone)  # its networks have buffers that threads cannot share
        return evaluate(policy, greedy=False, episodes=7, seed=3, num_envs=4, ranks=ranks)

    first, second = in_ranks(2, work)
    own = evaluate(marl.load(alone), greedy=False, episodes=4, seed=3, num_envs=2)
    assert first.returns.tolist() == second.returns.tolist()
    assert first.returns[:4].tolist() == own.returns.tolist()
    assert len(set(first.returns.tolist())) == len(first.returns) == 8
    assert (first.low, first.high, first.facts) == (second.low, second.high, second.facts)
    assert first.low < first.mean < first.high


def test_all_processes_evaluate_while_they_train() -> None:
    every = {"eval.every": 300, "eval.episodes": 6, "preferences.labeller": "return"}
    config = marl.load_config(overrides=SMALL | every)

    def work(ranks: Ranks) -> list[float]:
        rows = list(marl.train(config, ranks=ranks))
        return [row["evaluation/greedy"] for row in rows if "evaluation/greedy" in row]

    first, second = in_ranks(2, work)
    assert first == second
    assert len(first) == 2


def test_settings_that_differ_and_environments_that_do_not_divide_are_told() -> None:
    def start(ranks: Ranks, **options: Any) -> None:
        marl.Trainer(marl.load_config(overrides=SMALL | options), ranks=ranks)

    with pytest.raises(ConfigError, match=r"process 1 in learner.gamma \(0.99 and 0.9\); start"):
        in_ranks(2, lambda ranks: start(ranks, **{"learner.gamma": 0.9 if ranks.rank else 0.99}))
    with pytest.raises(ConfigError, match=r"env.num_envs: got 5, which 2 processes cannot share"):
        in_ranks(2, lambda ranks: start(ranks, **{"env.num_envs": 5}))


def test_processes_that_do_not_meet_say_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"RANK and MASTER_ADDR and MASTER_PORT is not set"):
        read_launch()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    with (
        pytest.raises(UserError, match=r"process 0 of 2: .* have not all met .* no firewall"),
        joined(join_seconds=1.0),
    ):
        raise AssertionError("alone")
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        monkeypatch.setenv("MASTER_PORT", str(held.getsockname()[1]))
        with pytest.raises(UserError, match=r"is used by another program"), joined():
            raise AssertionError("alone")
