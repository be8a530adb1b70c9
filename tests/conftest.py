"""While testing, the shapes in the signatures of the tensor modules are enforced."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from envs.processor import PREFERS_NUMPY
from tests import shapes

TENSOR_MODULES = [
    "marl.data.replay",
    "marl.data.rollout",
    "marl.data.types",
    "marl.evaluation",
    "marl.learners.actors",
    "marl.learners.critics",
    "marl.learners.distributions",
    "marl.learners.gae",
    "marl.learners.losses",
    "marl.learners.mappo",
    "marl.nn.gru",
    "marl.nn.gru_passes",
    "marl.nn.kernels",
    "marl.nn.layers",
    "marl.nn.mlp",
    "marl.nn.normalisation",
    "marl.policy",
    "marl.preferences",
    "marl.rewards",
]

shapes.enforce(TENSOR_MODULES)
torch.set_num_threads(1)

PASSED = os.environ.get("MARL_PASSED_TESTS", "")
"""A file of tests that have passed, which are not run again; those that pass are added."""


def pytest_report_header() -> str:
    """Say which library multiplies small matrices here; `tests/unit/test_kernels.py` tests both."""
    return f"products of matrices: {'NumPy' if PREFERS_NUMPY else 'PyTorch'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed before."""
    if not PASSED or not Path(PASSED).exists():
        return
    passed = set(Path(PASSED).read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note what has passed, in the process that hears of all tests."""
    if not PASSED or "PYTEST_XDIST_WORKER" in os.environ:
        return
    if report.when == "call" and report.passed:
        with open(PASSED, "a") as file:
            file.write(f"{report.nodeid}\n")


@pytest.fixture(autouse=True, scope="session")
def _own_state_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The list of trusted runs is the tests' own, not that of who runs them."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


@pytest.fixture(autouse=True)
def _nothing_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command was told to trust ends with its process, here with the test."""
    monkeypatch.setattr("marl.utils.plugins._granted", set())
    monkeypatch.setattr("marl.utils.plugins._grants_everything", False)


@pytest.fixture
def drawn() -> None:
    """Pictures are drawn. Without this fixture one pixel is written in the place of each: a short
    run takes twice as long with its curve. What a process of its own draws is drawn."""


@pytest.fixture(autouse=True)
def _pictures_of_one_pixel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(figure: Figure, path: Path, **_: Any) -> None:
        Image.new("RGB", (1, 1)).save(path, "PNG")

    if drawn.__name__ not in request.fixturenames:
        monkeypatch.setattr(Figure, "savefig", save)


@pytest.fixture
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """JAX compiles what several environments of a test session share only once."""
    jax = pytest.importorskip("jax", reason="needs the extra smax")
    from jax.experimental.compilation_cache import compilation_cache

    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.getbasetemp() / "jax"),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for values in (settings, before):
        for name, value in values.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # it reads them at its first use only
        if values is settings:
            yield


@pytest.fixture
def compiled_quickly() -> Iterator[None]:
    """JAX compiles without most optimizations, in about two thirds of the time: for tests of what
    is computed in few steps."""
    jax = pytest.importorskip("jax", reason="needs the extra smax")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
