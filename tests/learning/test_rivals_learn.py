"""Methods of others reach the known optimum of tiny tasks, and see what their papers promise.

`keys`: agents take a key in the first step and turn it in the last; the team is paid the share that
had the right one. Optimum 1, random .25; who turns keys taken at random gets .5.
"""

from typing import Any

import numpy as np
import pytest

from tests.learning.test_probes_learn import trained

EPISODES = ["rudder"]
"""Algorithms whose rewards depend on all that has happened in an episode."""


@pytest.mark.parametrize("algorithm", EPISODES)
def test_rewards_of_whole_episodes_reach_the_optimum(algorithm: str) -> None:
    # Optimum 1, random .25.
    _, first, last = trained("probe/keys", algorithm, 6_000)
    assert first < 0.6
    assert last > 0.9


@pytest.mark.parametrize("algorithm", ["rrd", *EPISODES])
def test_rewards_of_whole_episodes_tell_a_cause_from_its_delayed_effect(algorithm: str) -> None:
    """How the rewards' sums correlate with the returns of random play.

    An agent's pay is the product of two fair coins, of variance 3/16. A sum over single steps
    explains at most 2/16 of it, so that it correlates (2/3)^.5 = .82; what reads both steps may
    correlate 1.
    """
    options: dict[str, Any] = {"learner.learning_rate": 0.0, "learner.epochs": 1}
    options |= {"reward.learning_rate": 1e-2, "preferences.holdout_every": 4}
    trainer, _, _ = trained("probe/keys", algorithm, 7_500, **options)
    found = [trainer.iterate()["regression/correlation"] for _ in range(4)]
    if algorithm == "rrd":
        assert np.mean(found) < 0.87
    else:
        assert np.mean(found) > 0.97
