"""What Weights & Biases and MLflow record of a run on this machine; no key is among it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from marl import Callback, ConfigError, train
from marl.trackers import MLflow, TrackerError, WeightsAndBiases, trackers
from tests.command_line import run
from tests.small_runs import small

KEY = "0123456789abcdef0123456789abcdef01234567"
SPARSE = {"algorithm": "sparse", "total_steps": 320, "checkpoint_every": 160}


class Broken(Callback):
    def on_iteration(self, metrics: dict[str, float]) -> None:
        raise ValueError("mine")


def recorded(folder: Path) -> bytes:
    """Return the content of all files in a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    folder = tmp_path / "team"
    for resume in (False, True):
        iterations = train(
            small(**SPARSE), folder, resume=resume, callbacks=[WeightsAndBiases("tests")]
        )
        next(iterations)
        iterations.close()
    identity = (folder / "run_id").read_text().strip()
    parts = sorted((folder / "wandb").glob(f"offline-run-*-{identity}"))
    assert parts  # both sessions are one run there
    content = recorded(folder / "wandb")
    for text in (b"return/mean", b"learner.epochs", b"particles/nav_3"):
        assert text in content
    assert KEY.encode() not in recorded(folder)


def test_mlflow_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", KEY)
    uri, folder = f"sqlite:///{tmp_path}/store.db", tmp_path / "team"
    rows: list[dict[str, float]] = []
    for resume, steps in ((False, 2), (True, 2)):
        run_ = train(small(**SPARSE), folder, resume=resume, callbacks=[MLflow("tests", uri)])
        rows += [next(run_) for _ in range(steps)]
        run_.close()
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("tests").experiment_id
    (found,) = client.search_runs([experiment])
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "team"
    assert found.data.params["learner.epochs"] == "2"
    assert found.data.params["environment"] == "particles/nav_3"
    history = client.get_metric_history(found.info.run_id, "policy/loss")
    expected = [(row["steps"], row["policy/loss"]) for row in rows]
    assert [(metric.step, metric.value) for metric in history] == expected
    assert KEY.encode() not in recorded(tmp_path)
    with pytest.raises(ValueError, match="mine"):
        next(train(small(**SPARSE), callbacks=[MLflow("other", uri), Broken()]))
    other = client.get_experiment_by_name("other").experiment_id
    assert client.search_runs([other])[0].info.status == "FAILED"


class _Error(Exception):
    pass


class _Run:
    """A run of a service that fails from its second report on."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.ended: list[int] = []

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        pass

    def log(self, row: dict[str, float]) -> None:
        if self.rows:
            raise _Error(f"no route to https://me:{KEY}@host/api")
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


def service(monkeypatch: pytest.MonkeyPatch, init: Any) -> None:
    """Put a service in the place of Weights & Biases."""
    fake = ModuleType("wandb")
    fake.Error, fake.Settings, fake.init = _Error, SimpleNamespace, init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_a_service_that_fails_later_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    there = _Run()
    service(monkeypatch, lambda **options: there)
    with pytest.warns(UserWarning, match="takes no more of this run") as told:
        rows = list(train(small(**SPARSE), callbacks=[WeightsAndBiases()]))
    assert len(rows) == 4
    assert len([one for one in told if "takes no more" in str(one.message)]) == 1
    assert not any(KEY in str(one.message) for one in told)
    assert there.rows[0]["steps"] == 80


def test_a_service_that_fails_at_the_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**options: Any) -> None:
        raise _Error("no API key configured")

    service(monkeypatch, init)
    with pytest.raises(TrackerError, match=r"no API key configured; log in by `wandb login`"):
        next(train(small(**SPARSE), callbacks=[WeightsAndBiases()]))


def test_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"needs the extra mlflow: pip install"):
        trackers(["mlflow"])
    there = _Run()
    given: list[dict[str, Any]] = []
    service(monkeypatch, lambda **options: given.append(options) or there)  # type: ignore[func-returns-value]
    there.log = there.rows.append  # type: ignore[method-assign, assignment]
    options = ["--env.name=particles/nav_3", "--algorithm=sparse", "--total-steps=1"]
    assert run("train", *options, "--run-dir", tmp_path / "run", "--track", "wandb") == 0
    assert given[0]["project"] == "prefmarl"
    assert (given[0]["name"], given[0]["resume"]) == ("run", "allow")
    assert given[0]["config"]["algorithm"] == "sparse"
    assert there.ended == [0]
    assert run("train", *options, "--track", "wnadb") == 2
    assert "did you mean 'wandb'?" in capsys.readouterr().err
