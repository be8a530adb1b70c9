"""The labeller against a real local model: llama.cpp's own server and SmolLM2-135M.

The model is plumbing, not a judge: nothing here looks at how often it is right. Locally the test
is skipped where the optional packages are missing; ``MARL_REQUIRE_LOCAL_LLM=1`` makes that a
failure.
"""

import math
import os
from pathlib import Path
from typing import Any

import pytest

from marl.config import ConfigError
from marl.preferences.llm import LabellerWarning
from marl.preferences.llm.protocol import Features
from tests.llm_cases import FakeClock, make, pairs_of
from tests.local_server import ALIAS, HOW_TO_INSTALL, has_server, model_file, start_server

REASON = f"needs a local model: {HOW_TO_INSTALL}"
KEY = "only-for-this-test"


def missing(reason: str) -> None:
    if os.environ.get("MARL_REQUIRE_LOCAL_LLM") == "1":
        pytest.fail(f"MARL_REQUIRE_LOCAL_LLM is set, but this {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def server() -> list[Any]:
    """Return the only reference to a server; dropping it stops it."""
    weights = model_file()
    if weights is None or not has_server():
        missing(REASON)
        raise AssertionError
    return [start_server(weights, key=KEY)]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAND_IN_KEY", KEY)


def local(server: list[Any], folder: Path, **changes: Any) -> Any:
    settings = {"model": ALIAS, "timeout": 60.0, "deadline": 120.0, "concurrency": 1}
    return make(f"{server[0].listening_address}/v1", folder, **(settings | changes))


@pytest.mark.parametrize("ask", ["pointwise", "pairwise"])
def test_labels_are_probabilities_repeat_exactly_and_mirror(
    ask: str, server: list[Any], tmp_path: Path
) -> None:
    labels = []
    for name in ("one", "two"):
        labeller = local(server, tmp_path / name, ask=ask, margin=0.0, min_mass=0.0)
        labeller.start()
        found = labeller.server.features
        assert {"seed", "temperature", "no_cache"} <= found.parts
        assert found.top_logprobs == 20
        labels.append(labeller(pairs_of([1.0, 9.0, 5.0], [9.0, 1.0, -5.0])).tolist())
        assert labeller.metrics()["llm_answered"] == 3.0
        labeller.close()
    assert all(math.isfinite(label) and 0.0 < label < 1.0 for label in labels[0])
    assert labels[0] == labels[1]
    assert labels[0][0] + labels[0][1] == pytest.approx(1.0, abs=1e-6)


def test_constrained_votes_are_always_one_of_the_choices(server: list[Any], tmp_path: Path) -> None:
    labeller = local(server, tmp_path, ask="pairwise", votes=2, min_mass=0.0, margin=0.0)
    parts = frozenset(("max_tokens", "temperature", "seed", "json_schema"))
    labeller.server.features = Features(parts=parts)
    labeller(pairs_of([1.0], [9.0]))
    scores = labeller.metrics()
    assert "llm_fault_unusable" not in scores
    assert scores["llm_calls"] == 4.0
    assert scores["llm_answered"] == 1.0


def test_a_wrong_key_and_a_wrong_model_are_named(
    server: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="has no 'gpt'; it lists smollm2"):
        local(server, tmp_path / "model", model="gpt").start()
    monkeypatch.setenv("STAND_IN_KEY", "another")
    with pytest.raises(ConfigError, match=r"turned the model 'smollm2' down \(key: "):
        local(server, tmp_path / "key").start()


def test_stopped_in_the_middle(server: list[Any], tmp_path: Path) -> None:
    labeller = local(server, tmp_path, min_mass=0.0, margin=0.0)
    labeller.start()
    before = labeller(pairs_of([1.0], [9.0])).tolist()
    labeller.close()
    address = f"{server[0].listening_address}/v1"
    server.clear()
    again = make(address, tmp_path, FakeClock(), model=ALIAS,
                 min_mass=0.0, margin=0.0)  # fmt: skip
    with pytest.warns(LabellerWarning, match="no answer to any of 1 pairs"):
        assert again(pairs_of([2.0], [8.0])).isnan().all()
    assert again(pairs_of([1.0], [9.0])).tolist() == before
