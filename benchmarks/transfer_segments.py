"""Answers about parts of episodes, for `benchmarks.transfer`: cut a dataset, look at single steps.

Axes: L steps.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from envs import EnvSpec
from envs.base import FloatArray
from marl.data.replay import every_step
from marl.preferences.dataset import Answer, EpisodeRecord, PreferenceDataset, now
from marl.rewards.io import load_reward


@dataclass(frozen=True)
class Worth:
    """What single steps are worth to those who answer: a fact, known after each step."""

    fact: str
    lower_is_better: bool

    def __call__(self, episode: EpisodeRecord, spec: EnvSpec) -> FloatArray:
        """Return (L) the fact after each step, larger being better."""
        assert episode.step_facts is not None
        place = [fact.name for fact in spec.facts].index(self.fact)
        values = episode.step_facts[:, place]
        return -values if self.lower_is_better else values


def cut(episodes: Path, folder: Path, worth: Worth, steps: int, count: int, seed: int) -> None:
    """Write `count` pairs of segments of different episodes, and which has the better fact.

    Every pair is asked once; where segments begin is drawn. Those that end before their episode
    does are interrupted, not ended.
    """
    given = PreferenceDataset(episodes)
    environment, rng = given.manifest.environment, np.random.default_rng(seed)
    made = PreferenceDataset.create(
        folder,
        replace(given.spec, max_steps=steps),
        environment=environment.name,
        options=environment.options,
    )
    numbers, sums = given.numbers(), []
    for pair in range(count):
        for number in rng.choice(numbers, 2, replace=False):
            whole = given.episode(int(number))
            start = int(rng.integers(whole.length - steps + 1))
            segment = cut_episode(whole, start, steps)
            sums.append(float(worth(segment, given.spec).sum()))
            made.add_episode(replace(segment, episode_return=sums[-1]), len(sums) - 1)
        first, second = sums[-2:]
        label = 0.5 + 0.5 * float(np.sign(first - second))
        made.answers.append(
            Answer(first=2 * pair, second=2 * pair + 1, label=label, source="rule", at=now())
        )


def cut_episode(whole: EpisodeRecord, start: int, steps: int) -> EpisodeRecord:
    """Return `steps` steps of an episode from step `start` on, as an episode."""
    end = start + steps
    by_step = ("obs", "state", "actions", "step_facts", "alive", "action_mask")
    kept = {name: getattr(whole, name) for name in by_step}
    parts = {name: None if rows is None else rows[start:end] for name, rows in kept.items()}
    if end == whole.length:
        return replace(whole, **parts)
    return replace(
        whole,
        **parts,
        final_obs=whole.obs[end],
        final_state=whole.state[end],
        final_alive=None if whole.alive is None else whole.alive[end],
        facts=None,
        terminated=False,
    )


def by_step(made: Path, episodes: Path, worth: Worth) -> dict[str, float]:
    """Return how the steps' rewards of a fit go with the fact, and how rough they are in time.

    Roughness is the mean squared change from step to step, over twice the variance: 0 where
    nothing changes, 1 where steps have nothing to do with one another. That of the fact stands
    beside it. Of every eighth episode.
    """
    given = PreferenceDataset(episodes)
    reward, archive = load_reward(made, given.spec, "segments"), given.archive()
    numbers = archive.available(held_out=True)
    found: list[Any] = []
    for steps, *_ in every_step(archive.episodes(numbers), reads_history=reward.reads_history):
        found += list(reward.rewards(steps).team.numpy())
    facts = [worth(given.episode(number), given.spec) for number in numbers.tolist()]
    learned = [row[: len(fact)] for row, fact in zip(found, facts, strict=True)]

    def roughness(rows: list[Any]) -> float:
        changes = np.concatenate([np.diff(row) for row in rows])
        return round(float((changes**2).mean() / (2.0 * np.concatenate(rows).var())), 4)

    together = np.corrcoef(np.concatenate(learned), np.concatenate(facts))[0, 1]
    return {
        "correlation": round(float(together), 4),
        "roughness": roughness(learned),
        "roughness of the fact": roughness(facts),
    }
