"""A trained team as a file that runs without this package: ONNX, or a program of torch.export.

The file holds the networks and the normalisation of observations. It takes what `Policy.act` takes,
and returns the likeliest actions and the distribution that they are the mode of.

Axes: E teams, N agents, O observation features, A actions, H hidden units.
"""

import copy
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from envs.parts import part_layout
from marl import UserError
from marl.config import ConfigError
from marl.data.rollout import executed
from marl.learners.distributions import Categorical, Composite, Gaussian
from marl.policy import Policy
from marl.utils.files import atomic_path, check_writable, make_folder, output

if TYPE_CHECKING:
    from onnx import ModelProto

ONNX, PROGRAM = ".onnx", ".pt2"
"""Suffixes of the files that can be written."""
TOLERANCE = 1e-5
"""Largest difference between what the file and the policy say, relative to numbers beyond 1."""
_CHECKED = 64
"""Teams on which they are compared."""


class ExportError(UserError):
    """A policy cannot be exported, or its file does not say what the policy says."""


@dataclass(frozen=True, kw_only=True)
class Port:
    """An input or an output of an exported policy."""

    name: str
    kind: str
    """``float32``, ``int64`` or ``bool``; ``uint8`` of pictures."""
    shape: tuple[int, ...]
    """For one team; a leading axis counts the teams."""
    meaning: str


@dataclass(frozen=True, kw_only=True)
class ExportedPolicy:
    """What was written."""

    path: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    agents: tuple[str, ...]
    """(N,) names; an agent's id is its place on the axis N, and the networks know it by that."""
    difference: float
    """Largest difference between what the file and the policy say, see `TOLERANCE`."""


class _Team(nn.Module):
    """The policy as a function of tensors."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        actor = copy.deepcopy(policy.actor)
        if not isinstance(actor, nn.Module):
            raise ExportError(
                f"learner.kind: the actor of {policy.config.learner.kind} is no torch.nn.Module, "
                "which an exported policy has to be"
            )
        self.actor = _with_graph(actor.cpu().requires_grad_(False))
        self.spec = policy.spec

    def forward(
        self, obs: Tensor, mask: Tensor | None = None, hidden: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the outputs by name."""
        if not hasattr(self.actor, "step_distribution"):  # of a learner of the user's
            actions, _, hidden = self.actor.act(obs, hidden, mask, None)
            outputs = {"actions": executed(self.spec, actions)}
        else:
            policy, hidden = self.actor.step_distribution(obs, hidden, mask)
            outputs = {"actions": executed(self.spec, policy.mode())}
            if isinstance(policy, Categorical | Composite):
                outputs["logits"] = policy.logits
            numbers = policy.numbers if isinstance(policy, Composite) else policy
            if isinstance(numbers, Gaussian):
                outputs["mean"] = numbers.mean
                outputs["std"] = numbers.log_std.exp().expand_as(numbers.mean)
        return outputs if hidden is None else outputs | {"next_hidden": hidden}


def _with_graph(actor: Any) -> Any:
    """Return an actor without explicit passes, which write into memory of their own."""
    if hasattr(actor, "passes"):
        actor.passes = None
    return actor


_MEANINGS = {
    "obs": "observations, padded with zeros beyond an agent's own features",
    "mask": "True where an action is legal",
    "hidden": "zeros in an episode's first step, then next_hidden of the step before",
    "actions": "the likeliest ones",
    "logits": "of the softmax that actions are drawn from; illegal ones hold the smallest number",
    "mean": "of the Gaussian that numbers are drawn from, and then clipped to [-1, 1]",
    "std": "its deviation",
    "next_hidden": "the hidden state after the step",
}


def export_policy(policy: Policy, path: Path | str) -> ExportedPolicy:
    """Write a policy to a file ``.onnx`` or ``.pt2``, and compare the two on random observations.

    ``.onnx`` needs the extra ``export``; ``.pt2`` is read by `torch.export.load`. The number of
    teams E is free in both. Raises `ExportError` where the file would say something else.
    """
    path = Path(path)
    if path.suffix not in (ONNX, PROGRAM):
        raise ConfigError(f"{path} ends in {path.suffix!r}; expected {ONNX} or {PROGRAM}")
    if path.suffix == ONNX:
        _check_extra()
    remedy = "name another file by --out"
    with output(path, remedy):  # told before the work is done
        make_folder(path.parent)
        check_writable(path)
    team = _Team(policy)
    inputs = _random_inputs(policy, _CHECKED)
    with torch.no_grad():
        expected = {name: value.numpy() for name, value in team(**inputs).items()}
    ports = [
        tuple(
            Port(
                name=name,
                kind=str(value.dtype).removeprefix("torch."),
                shape=tuple(value.shape[1:]),
                meaning=_MEANINGS[name],
            )
            for name, value in values.items()
        )
        for values in (inputs, expected)
    ]
    facts = _facts(policy, *ports)
    with _silence():
        program = torch.export.export(
            team,
            (),
            kwargs=inputs,
            dynamic_shapes={name: {0: torch.export.Dim("teams")} for name in inputs},
        )
        model = _onnx_model(program, list(expected), facts) if path.suffix == ONNX else None
    with output(path, remedy), atomic_path(path) as temporary:
        if model is None:
            with temporary.open("wb") as file:
                torch.export.save(program, file, extra_files={"policy.json": json.dumps(facts)})
            found = _run_program(temporary, inputs)
        else:
            temporary.write_bytes(model.SerializeToString())
            found = _run_onnx(temporary, inputs)
        difference = _difference(expected, found)
        if not difference <= TOLERANCE:
            raise ExportError(
                f"{path}: the exported policy differs from the run's by {difference:.2g}, more "
                f"than {TOLERANCE:g}; it is not written"
            )
    return ExportedPolicy(
        path=path,
        inputs=ports[0],
        outputs=ports[1],
        agents=tuple(facts["agents"]),
        difference=difference,
    )


def _check_extra() -> None:
    """Raise `ConfigError` where a package is missing that ONNX needs."""
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                "ONNX needs the extra export: pip install -c constraints.txt '.[export]'; or name "
                f"a file that ends in {PROGRAM}"
            ) from error


def _random_inputs(policy: Policy, teams: int) -> dict[str, Tensor]:
    """Return random observations, masks and hidden states, those that the policy takes."""
    spec, random = policy.spec, np.random.default_rng(0)
    shape = (teams, spec.num_agents)
    if spec.obs_image:
        obs = random.integers(256, size=(*shape, spec.obs_size), dtype=np.uint8)
    else:
        obs = random.normal(size=(*shape, spec.obs_size)).astype(np.float32)
    inputs = {"obs": torch.from_numpy(obs)}
    if spec.masks_actions:
        mask = random.random((*shape, spec.action_size)) < 0.5
        mask[..., 0] = True
        if spec.action_kind == "composite":
            layout = part_layout(spec.action_parts)
            mask |= layout.is_number | layout.one_hot(np.ones(mask.shape)).astype(np.bool_)
        inputs["mask"] = torch.from_numpy(mask)
    hidden = policy.actor.initial_hidden(teams)
    if hidden is not None:
        inputs["hidden"] = torch.from_numpy(random.uniform(-1, 1, hidden.shape)).to(hidden.dtype)
    return inputs


def _facts(policy: Policy, inputs: tuple[Port, ...], outputs: tuple[Port, ...]) -> dict[str, Any]:
    """Return what the file says of itself."""
    spec = policy.spec
    ports = {"inputs": inputs, "outputs": outputs}
    return {
        "environment": policy.config.env.name,
        "trained": policy.trained,
        "agents": [spec.agent_name(agent) for agent in range(spec.num_agents)],
        "observation_sizes": list(spec.obs_sizes),
        "action_sizes": list(spec.action_sizes),
        "action_kind": spec.action_kind,
        "action_parts": [list(parts) for parts in spec.action_parts],
        **{
            kind: {
                port.name: {
                    "type": port.kind,
                    "shape": ["teams", *port.shape],
                    "meaning": port.meaning,
                }
                for port in some
            }
            for kind, some in ports.items()
        },
    }


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporters' notes about themselves from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _onnx_model(
    program: torch.export.ExportedProgram, outputs: list[str], facts: dict[str, Any]
) -> "ModelProto":
    """Return a program as a model that says what it takes, and nothing of where it was made."""
    converted = torch.onnx.export(program, output_names=outputs, dynamo=True, verbose=False)
    assert converted is not None
    model = converted.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # lines of source code with their folders
        node.doc_string = ""
    del model.graph.value_info[:]
    for port in (*model.graph.input, *model.graph.output):
        del port.metadata_props[:]
        port.type.tensor_type.shape.dim[0].dim_param = "teams"
    model.doc_string = f"{facts['environment']}, {facts['trained']}"
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        model.metadata_props.add(key=name, value=text)
    return model


def _run_onnx(path: Path, inputs: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Return what a file says by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    values = session.run(names, {name: value.numpy() for name, value in inputs.items()})
    return dict(zip(names, values, strict=True))


def _run_program(path: Path, inputs: dict[str, Tensor]) -> dict[str, npt.NDArray[Any]]:
    """Return what a file says by PyTorch."""
    with path.open("rb") as file:
        values = torch.export.load(file).module()(**inputs)
    return {name: value.numpy() for name, value in values.items()}


def _difference(expected: dict[str, npt.NDArray[Any]], found: dict[str, npt.NDArray[Any]]) -> float:
    """Return the largest difference, relative to numbers beyond 1.

    Actions are left out where there are logits: of two that are equally likely up to
    rounding, either is right.
    """
    most = 0.0
    for name, right in expected.items():
        if name == "actions" and "logits" in expected:
            continue
        wrong = np.abs(found[name].astype(np.float64) - right) / np.maximum(1.0, np.abs(right))
        most = max(most, float(wrong.max()))
    return most
