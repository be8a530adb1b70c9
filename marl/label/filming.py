"""Episodes of a trained team for people to compare."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from envs import EnvError, VecEnv
from marl.policy import Policy
from marl.preferences.people import Camera, RunSet, manifest_of
from marl.preferences.sets.episodes import EpisodeRecord
from marl.preferences.sets.export import record_of
from marl.preferences.sets.frames import filmed_episodes
from marl.rollout import Collector
from marl.seeding import Seeds
from marl.trajectories import TrajectoryStore


def missing_episodes(folder: Path, count: int) -> list[int]:
    """Return the numbers of those of the first `count` episodes that a set has no frames of."""
    return sorted(set(range(count)) - set(filmed_episodes(folder)))


def film_episodes(policy: Policy, run: Path, folder: Path, numbers: Sequence[int]) -> Iterator[int]:
    """Play episodes by sampled actions into a set; yield each number once it is on the disk.

    An episode's number is its seed: the same policy always plays the same episode.
    """
    with policy.open_env(1) as env:
        kept = RunSet(folder, manifest_of(policy.config, env.spec, run))
        for number in numbers:
            record, film = _filmed(policy, env, number)
            kept.add(number, record, film)
            yield number


def _filmed(policy: Policy, env: VecEnv, number: int) -> tuple[EpisodeRecord, bytes]:
    """Return the episode whose seed is `number`, and its film."""
    spec, steps, cpu = env.spec, env.spec.max_steps, torch.device("cpu")
    seeds, camera = Seeds(number), Camera(env, 1)
    collector = Collector(
        env,
        policy.norm,
        steps,
        seed=seeds.integer("evaluation environment"),
        generator=seeds.torch("evaluation actions"),
        device=cpu,
        watcher=camera,
    )
    rollout = collector.collect(policy.actor)[0]
    store = TrajectoryStore(
        spec, steps, max_steps=2 * steps, max_episodes=steps, holdout_every=2, device=cpu
    )
    store.append(rollout)
    film = camera.film(0, 0)
    if film is None:
        raise EnvError(
            f"{spec.name} ended no episode in {steps} steps, its max_steps. `marl check` tests it"
        )
    return record_of(store, spec, 0), film
