"""The judge of known skill is as often right as its name says, whatever it favours."""

import math
from pathlib import Path

import pytest
import torch

from benchmarks.judge import JudgeServer
from tests.llm_cases import make, pairs_of

COUNT = 150


@pytest.mark.parametrize(
    ("model", "accuracy", "takes_first"), [("judge-80", 0.8, 0.5), ("judge-70-first", 0.7, 1.0)]
)
def test_it_is_right_as_often_as_it_should_be(
    model: str, accuracy: float, takes_first: float, tmp_path: Path
) -> None:
    draws = torch.Generator().manual_seed(0)
    returns = torch.arange(2.0 * COUNT)[torch.randperm(2 * COUNT, generator=draws)]
    first, second = returns[:COUNT], returns[COUNT:]
    settings = {"describe": "benchmarks.judge:told_return", "model": model, "margin": 0.0}
    with JudgeServer() as server:
        labeller = make(server.base_url, tmp_path, ask="pairwise", timeout=30.0, **settings)
        labels = labeller(pairs_of(first.tolist(), second.tolist()))
        turned = labeller(pairs_of(second.tolist(), first.tolist()))
        metrics = labeller.metrics()
    is_right = (labels > 0.5) == (first > second)
    deviation = math.sqrt(accuracy * (1.0 - accuracy) / COUNT)
    assert abs(float(is_right.float().mean()) - accuracy) < 3.5 * deviation
    torch.testing.assert_close(labels, 1.0 - turned, rtol=0.0, atol=1e-3)  # the bias cancels
    sure = (labels - 0.5).abs()
    most_sure = sure > sure.median()
    assert is_right[most_sure].sum() > is_right[~most_sure].sum()
    assert metrics["llm_first_choice_share"] == pytest.approx(takes_first, abs=0.1)
    assert metrics["llm_flip_rate"] == (1.0 if takes_first == 1.0 else 0.0)
