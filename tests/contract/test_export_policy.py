"""An exported team says what the policy says, outside of this package, to 1e-5."""

import json
import sys
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import marl
from envs import make_env
from envs.rng import random_actions
from marl import export
from marl.export import ExportError, export_policy
from tests.command_line import QUICK, run
from tests.contract.test_policy import untrained

Memory = Literal["none", "gru"]


@pytest.fixture
def runtime() -> Any:
    """ONNX Runtime."""
    pytest.importorskip("onnxscript", reason="needs the extra export")
    return pytest.importorskip("onnxruntime", reason="needs the extra export")


def policy_with_statistics(name: str, recurrence: Memory) -> marl.Policy:
    """Return a policy with random weights, which are large, and statistics of observations."""
    policy = untrained(name, recurrence=recurrence)
    draw = torch.Generator().manual_seed(7)
    for key, value in policy.actor.state_dict().items():
        if key.endswith(("mean", "scale")):
            value.copy_(0.5 + torch.rand(value.shape, generator=draw))
        elif value.is_floating_point() and key.startswith("body"):
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
    return policy


def episode(policy: marl.Policy, teams: int, steps: int) -> list[dict[str, Any]]:
    """Return observations and masks of successive steps, while something else acts."""
    env = make_env(policy.spec.name, teams)
    draws = np.random.default_rng(5)
    step, seen = env.reset(3), []
    for _ in range(steps):
        seen.append({"obs": step.obs.copy()})
        if step.action_mask is not None:
            seen[-1]["mask"] = step.action_mask.copy()
        step = env.step(random_actions(env.spec, draws, step.action_mask))
    return seen


@pytest.mark.parametrize(
    ("name", "recurrence"),
    [
        ("particles/nav_3", "none"),
        ("probe/masked", "gru"),
        ("probe/continuous_match", "gru"),
    ],
)
def test_onnx_says_what_the_policy_says(
    name: str, recurrence: Memory, tmp_path: Path, runtime: Any
) -> None:
    policy = policy_with_statistics(name, recurrence)
    made = export_policy(policy, tmp_path / "team.onnx")
    assert made.difference <= 1e-5
    session = runtime.InferenceSession(str(made.path), providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == [port.name for port in made.inputs]
    names = [port.name for port in session.get_outputs()]
    assert names == [port.name for port in made.outputs]
    teams, hidden = 5, policy.actor.initial_hidden(5)  # any number of teams
    for given in episode(policy, teams, 4):
        inputs = dict(given)
        if hidden is not None:
            inputs["hidden"] = hidden.numpy()
        for value, port in zip(inputs.values(), session.get_inputs(), strict=True):
            assert port.shape == ["teams", *value.shape[1:]]
        found = dict(zip(names, session.run(names, inputs), strict=True))
        actions = policy.act(**given, greedy=True)
        if policy.spec.action_kind == "discrete":
            np.testing.assert_array_equal(found["actions"], actions)
            assert "mask" not in given or given["mask"].min() < 1  # some are illegal
        else:
            np.testing.assert_allclose(found["actions"], actions, rtol=0, atol=1e-5)
        tensors = {key: torch.from_numpy(value) for key, value in given.items()}
        with torch.no_grad():
            distribution, hidden = policy.actor.step_distribution(  # type: ignore[attr-defined]
                tensors["obs"], hidden, tensors.get("mask")
            )
        part = "logits" if policy.spec.action_kind == "discrete" else "mean"
        expected = getattr(distribution, part).detach().numpy()
        np.testing.assert_allclose(found[part], expected, rtol=1e-5, atol=1e-5)
        if part == "mean":
            std = distribution.log_std.exp().expand_as(distribution.mean).detach().numpy()
            np.testing.assert_allclose(found["std"], std, rtol=1e-6)
        if hidden is not None:
            np.testing.assert_allclose(found["next_hidden"], hidden.numpy(), rtol=0, atol=1e-5)
    # The file says what it takes, and not where it was made.
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["environment"] == name
    assert (
        json.loads(facts["agents"])
        == list(made.agents)
        == ["agent 0", "agent 1", "agent 2"][: policy.spec.num_agents]
    )
    shape = ["teams", policy.spec.num_agents, policy.spec.obs_size]
    assert json.loads(facts["inputs"])["obs"]["shape"] == shape
    assert str(Path(marl.__file__).parent).encode() not in made.path.read_bytes()


@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_a_program_says_what_the_policy_says(recurrence: Memory, tmp_path: Path) -> None:
    policy = policy_with_statistics("particles/nav_3", recurrence)
    made = export_policy(policy, tmp_path / "team.pt2")
    assert made.difference <= 1e-5
    files = {"policy.json": ""}
    team = torch.export.load(made.path, extra_files=files).module()
    assert list(json.loads(files["policy.json"])["inputs"]) == [port.name for port in made.inputs]
    (given,) = episode(policy, 2, 1)
    inputs = {"obs": torch.from_numpy(given["obs"])}
    if (hidden := policy.actor.initial_hidden(2)) is not None:
        inputs["hidden"] = hidden
    np.testing.assert_array_equal(
        team(**inputs)["actions"].numpy(), policy.act(**given, greedy=True)
    )


def test_a_file_that_differs_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def zeros(path: Path, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        found = real(path, inputs)
        return found | {"logits": found["logits"] + 2e-5}

    real = export._run_program
    monkeypatch.setattr(export, "_run_program", zeros)
    with pytest.raises(ExportError, match="differs from the run's by 2e-05, more than 1e-05"):
        export_policy(untrained("particles/nav_3"), tmp_path / "team.pt2")
    assert list(tmp_path.iterdir()) == []


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "run"
    assert run("train", *QUICK, "--run-dir", folder) == 0
    assert run("export-policy", folder, "--out", tmp_path / "team.txt") == 1
    assert "expected .onnx or .pt2" in capsys.readouterr().err
    assert run("export-policy", folder, "--out", tmp_path / "new" / "team.pt2") == 0
    shown = capsys.readouterr().out
    assert "(teams, 3, 6)" in shown
    assert "agent 0, agent 1, agent 2" in shown
    assert (tmp_path / "new" / "team.pt2").is_file()
    assert run("export-policy", tmp_path / "nowhere") == 1
    assert "nowhere" in capsys.readouterr().err


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(marl.ConfigError, match=r"needs the extra export: pip install .*\.pt2"):
        export_policy(untrained("particles/nav_3"), tmp_path / "team.onnx")
