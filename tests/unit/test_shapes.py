"""The check of shapes that all other tests run with can fail."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation
from jaxtyping import Float
from torch import Tensor

from marl.learners import gae
from tests import shapes

MODULE = """
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def mean(values: Float[Tensor, "E N"], result: Tensor) -> Float[Tensor, "E"]:
    return result


def part(values: Float[Tensor, "E N"], share: float) -> Float[Tensor, "E"]:
    return values[: round(share * len(values)), 0]


class Sums:
    @staticmethod
    @torch.no_grad()
    def weighted(values: Float[Tensor, "E N"], weights: Float[Tensor, "M"]) -> Tensor:
        def total(weights: Float[Tensor, "N"]) -> Tensor:
            return values @ weights

        return total(weights)


@dataclass(frozen=True)
class Both:
    one: Float[Tensor, "E"]
    other: Float[Tensor, "E"] | None


def double(number: int) -> int:
    return 2 * number
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    (tmp_path / "with_shapes.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.delitem(sys.modules, "with_shapes", raising=False)
    shapes.enforce(["with_shapes"])
    return importlib.import_module("with_shapes")


def test_parameters_and_what_is_returned_are_checked_together(module: ModuleType) -> None:
    values = torch.zeros(3, 2)
    assert module.mean(values, values.mean(-1)).shape == (3,)
    with pytest.raises(BeartypeCallHintParamViolation):
        module.mean(values[0], torch.zeros(3))
    with pytest.raises(BeartypeCallHintReturnViolation):
        module.mean(values, torch.zeros(2))  # as many as agents, not as environments
    with pytest.raises(BeartypeCallHintReturnViolation):
        module.mean(values, torch.zeros(3, dtype=torch.int64))


def test_what_was_right_once_is_no_excuse(module: ModuleType) -> None:
    values = torch.zeros(4, 2)
    assert module.part(values, 1.0).shape == (4,)
    for _ in range(2):
        with pytest.raises(BeartypeCallHintReturnViolation):
            module.part(values, 0.5)
        assert module.part(values, 1.0).shape == (4,)
    assert module.part(share=0.9, values=values).shape == (4,)
    for wrong in (torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64), [0.0]):
        with pytest.raises(BeartypeCallHintParamViolation):
            module.part(wrong, 1.0)


def test_functions_in_classes_and_functions_are_checked_each_by_itself(module: ModuleType) -> None:
    weighted = module.Sums.weighted
    assert weighted(torch.ones(3, 2), torch.ones(2)).tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(RuntimeError, match="size mismatch"):  # the inner N is not the outer one
        weighted(torch.ones(3, 2), torch.ones(3))
    with pytest.raises(BeartypeCallHintParamViolation):
        weighted(torch.ones(3), torch.ones(2))


def test_fields_of_a_dataclass_are_checked(module: ModuleType) -> None:
    assert module.Both(torch.zeros(3), None).other is None
    module.Both(torch.zeros(3), torch.zeros(3))
    with pytest.raises(BeartypeCallHintParamViolation):
        module.Both(torch.zeros(3), torch.zeros(2))


def test_a_function_without_shapes_is_checked(module: ModuleType) -> None:
    assert module.double(3) == 6
    with pytest.raises(BeartypeCallHintParamViolation):
        module.double(0.5)


def test_what_is_imported_too_early_is_not_left_unchecked(module: ModuleType) -> None:
    with pytest.raises(ImportError, match=r"imported before .*: with_shapes$"):
        shapes.enforce(["with_shapes"])


def test_nothing_compiled_with_checks_is_kept(module: ModuleType, tmp_path: Path) -> None:
    assert [path.name for path in tmp_path.iterdir()] == ["with_shapes.py"]


def test_the_modules_of_the_learner_are_checked() -> None:
    rewards: Float[Tensor, "T E"] = torch.zeros(4, 2)
    with pytest.raises(BeartypeCallHintParamViolation):
        gae.standardise(rewards.long(), rewards.long())
