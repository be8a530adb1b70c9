"""Datasets of whole episodes that a script has played, with pairs labelled by the return."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs import EnvSpec, EnvStep, make_env
from envs.rng import random_actions
from marl.preferences.dataset import Answer, EpisodeRecord, PreferenceDataset, now

Play = Callable[[EnvSpec, EnvStep], npt.NDArray[Any]]
"""From what the agents see to their actions."""


def at_random(seed: int = 0) -> Play:
    """Return a play of random legal actions."""
    rng = np.random.default_rng(seed)
    return lambda spec, step: random_actions(spec, rng, step.action_mask)


def name_the_cue(spec: EnvSpec, step: EnvStep) -> npt.NDArray[Any]:
    """Play the tasks `local_credit`, `coordination` and `dying` as well as can be."""
    chosen: npt.NDArray[np.int64] = step.obs.argmax(axis=-1)
    return chosen


def play_episodes(
    name: str, count: int, play: Play, *, seed: int = 0, demonstration: bool = False
) -> tuple[EnvSpec, list[EpisodeRecord]]:
    """Return the first episode of each of `count` environments, and what they are made of."""
    env = make_env(name, count)
    spec, step = env.spec, env.reset(seed)
    shown: list[dict[str, Any]] = []
    records: dict[int, EpisodeRecord] = {}
    returns = np.zeros(count)
    while len(records) < count:
        seen = {n: getattr(step, n) for n in ("obs", "state", "alive", "action_mask")}
        row = {n: np.array(array) for n, array in seen.items() if array is not None}
        shown.append(row | {"actions": play(spec, step)})
        step = env.step(shown[-1]["actions"])
        returns += step.rewards
        for index in np.flatnonzero(step.terminated | step.truncated).tolist():
            if index in records:
                continue
            arrays = {n: np.stack([row[n][index] for row in shown]) for n in shown[0]}
            if spec.agents_die and step.final_alive is not None:
                arrays["final_alive"] = step.final_alive[index].copy()
            records[index] = EpisodeRecord(
                **arrays,
                final_obs=step.final_obs[index].copy(),
                final_state=step.final_state[index].copy(),
                episode_return=float(returns[index]),
                terminated=bool(step.terminated[index]),
                demonstration=demonstration,
            )
    return spec, [records[index] for index in range(count)]


def played(folder: Path, name: str, *, episodes: int = 64, pairs: int = 200) -> PreferenceDataset:
    """Return a dataset of random episodes, and of random pairs that the return has labelled."""
    spec, records = play_episodes(name, episodes, at_random())
    dataset = PreferenceDataset.create(folder, spec, environment=name)
    for record in records:
        dataset.add_episode(record)
    rng = np.random.default_rng(1)
    drawn = [rng.choice(episodes, 2, replace=False).tolist() for _ in range(pairs)]
    gaps = [records[a].episode_return - records[b].episode_return for a, b in drawn]
    dataset.answers.extend(
        Answer(first=a, second=b, label=float(0.5 + 0.5 * np.sign(gap)), source="rule", at=now())
        for (a, b), gap in zip(drawn, gaps, strict=True)
    )
    return dataset
