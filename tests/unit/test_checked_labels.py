"""What labellers may answer, and labels made from returns.

Axes: B pairs.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import PreferenceConfig
from marl.config.io import load_config
from marl.config.preferences import LABELLERS
from marl.preferences import make_labeller
from marl.preferences.labellers import EpisodePairs, Labeller, ReturnLabeller, checked_labels
from marl.utils.plugins import PluginError
from marl.utils.seeding import Seeds
from tests.llm_cases import pairs_of
from tests.scripted import ScriptedEnv


def test_the_larger_return_is_preferred() -> None:
    labels = ReturnLabeller()(pairs_of([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]))
    assert labels.tolist() == [1.0, 0.0, 0.5]


def test_returns_within_the_margin_tie() -> None:
    labels = ReturnLabeller(margin=1.0)(pairs_of([2.0, 1.0, 3.5], [1.0, 2.0, 2.0]))
    assert labels.tolist() == [0.5, 0.5, 1.0]


def test_soft_labels_by_hand() -> None:
    # Returns 0, 2, 2, 0 have deviation 1: sigmoid(3 * -2) and sigmoid(3 * 2).
    labels = ReturnLabeller(sharpness=3.0)(pairs_of([0.0, 2.0], [2.0, 0.0]))
    expected = [1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))]
    assert labels.tolist() == pytest.approx(expected)


def test_soft_labels_of_equal_returns_are_ties() -> None:
    assert ReturnLabeller(sharpness=3.0)(pairs_of([1.0], [1.0])).tolist() == [0.5]


def test_discounted_returns_by_hand() -> None:
    # Discount 0.5: -8 after 1 step is -8, -8 after 3 steps -2; 8 after 3 steps 2, 3 after 1 step 3.
    pairs = pairs_of([-8.0, 8.0, 4.0], [-8.0, 3.0, 4.0])
    later = torch.tensor([3, 1, 1])
    pairs = replace(
        pairs,
        first=replace(pairs.first, lengths=torch.tensor([1, 3, 1])),
        second=replace(pairs.second, lengths=later),
    )
    assert ReturnLabeller()(pairs).tolist() == [0.5, 1.0, 0.5]
    assert ReturnLabeller(discount=0.5)(pairs).tolist() == [0.0, 0.0, 0.5]


def answering(answer: Any) -> Callable[[EpisodePairs], Any]:
    return lambda pairs: answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("10", "labeller mine:f returned str, expected a torch.Tensor, an array or a list of 2"),
        (["1", "0"], "labeller mine:f returned list, expected a torch.Tensor, an array or a list"),
        ([[1.0], [0.0]], "labeller mine:f returned list"),
        ({"first": 1.0}, "labeller mine:f returned dict"),
        (None, "labeller mine:f returned NoneType"),
        (np.array(["a", "b"]), "labeller mine:f returned ndarray"),
        (torch.zeros(2, dtype=torch.complex64), "labeller mine:f returned Tensor"),
        (1.0, r"labeller mine:f returned shape \(\) for 2 pairs"),
        ([1.0], r"labeller mine:f returned shape \(1,\) for 2 pairs"),
        (torch.zeros(3), r"labeller mine:f returned shape \(3,\) for 2 pairs"),
        (torch.zeros(2, 1), r"labeller mine:f returned shape \(2, 1\) for 2 pairs"),
        (torch.tensor([0, 2]), "labeller mine:f returned 2.0 for pair 1"),
        (torch.tensor([0.0, 1.5]), "labeller mine:f returned 1.5 for pair 1"),
        (torch.tensor([-1.0, 0.5]), "labeller mine:f returned -1.0 for pair 0"),
        (torch.tensor([math.inf, 0.5]), "labeller mine:f returned inf for pair 0"),
    ],
)
def test_a_labeller_that_breaks_its_promise_is_named(answer: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        checked_labels(answering(answer), "mine:f", pairs_of([1.0, 2.0], [2.0, 1.0]))


@pytest.mark.parametrize(
    "answer",
    [
        [1, 0],
        (1.0, 0.0),
        [True, False],
        [np.float64(1.0), torch.tensor(0.0)],
        np.array([1.0, 0.0]),
        np.array([True, False]),
        np.array([1, 0], dtype=np.uint8),
        torch.tensor([True, False]),
        torch.tensor([1, 0]),
        torch.tensor([1.0, 0.0], dtype=torch.bfloat16),
        torch.tensor([1.0, 0.0], requires_grad=True) * 1.0,
    ],
)
def test_labels_of_a_plain_meaning_are_converted(answer: Any) -> None:
    labels = checked_labels(answering(answer), "mine:f", pairs_of([1.0, 2.0], [2.0, 1.0]))
    assert labels.dtype == torch.float32
    assert not labels.requires_grad
    assert labels.tolist() == [1.0, 0.0]


def test_none_in_a_list_is_no_answer() -> None:
    labels = checked_labels(answering([None, 1]), "mine:f", pairs_of([1.0, 2.0], [2.0, 1.0]))
    assert labels.isnan().tolist() == [True, False]


def test_no_answer_is_a_legal_answer() -> None:
    answer = torch.tensor([math.nan, 0.5], dtype=torch.float64)
    labels = checked_labels(answering(answer), "mine:f", pairs_of([1.0, 2.0], [2.0, 1.0]))
    assert labels.dtype == torch.float32
    assert labels.isnan().tolist() == [True, False]


def test_a_labeller_may_be_a_function_or_a_class() -> None:
    spec = ScriptedEnv([[1]]).spec
    config = PreferenceConfig(margin=2.0, sharpness=3.0, discount=0.9)
    expected = ReturnLabeller(margin=2.0, sharpness=3.0, discount=0.9)
    assert make_labeller(config, spec, Seeds(0)) == expected
    plugged = PreferenceConfig(labeller="marl.preferences:ReturnLabeller")
    assert make_labeller(plugged, spec, Seeds(0)) == ReturnLabeller()


def failing(pairs: EpisodePairs) -> Tensor:
    raise KeyError("health")


def test_a_labeller_that_fails_is_named_with_the_place() -> None:
    with pytest.raises(
        PluginError, match=r"labeller mine:f raised KeyError: 'health' \(.*line"
    ) as e:
        checked_labels(failing, "mine:f", pairs_of([1.0], [2.0]))
    assert "test_checked_labels.py" in str(e.value)
    assert isinstance(e.value.__cause__, KeyError)


def longest(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return a labeller of the package, made of settings and the environment's constants."""
    return lambda pairs: (pairs.first.lengths > pairs.second.lengths).float() * spec.num_envs


def test_a_labeller_is_one_function_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABELLERS, "longest", f"{__name__}:longest")
    config = load_config(overrides={"preferences.labeller": "longest"}).preferences
    labeller = make_labeller(config, ScriptedEnv([[1]]).spec, Seeds(0))
    pairs = pairs_of([1.0], [2.0])
    longer = replace(pairs, first=replace(pairs.first, lengths=pairs.second.lengths + 1))
    assert labeller(pairs).tolist() == [0.0]
    assert labeller(longer).tolist() == [1.0]
