"""Episodes that teams play for a dataset: demonstrations, or pairs of which one is chosen.

Axes: E environments, M episodes.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich import get_console
from rich.progress import track

from marl.config import Option
from marl.data.replay import ReplayBuffer
from marl.data.rollout import Collector
from marl.policy import Policy
from marl.preferences.dataset.answers import Answer, now
from marl.preferences.dataset.dataset import PreferenceDataset
from marl.preferences.dataset.export import record_of
from marl.preferences.dataset.format import EpisodeRecord
from marl.utils.files import output, whole_folder
from marl.utils.seeding import Seeds
from marl.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """What was written."""

    folder: Path
    episodes: int
    """Of each team."""
    returns: tuple[float, ...]
    """Mean return of the team and, if there is one, of the one that is rejected."""


def sample_episodes(
    policy: Policy,
    folder: Path | str,
    *,
    episodes: int,
    name: str,
    rejected: Policy | None = None,
    greedy: bool = False,
    seed: int = 0,
    num_envs: int = 16,
) -> Sampled:
    """Write a dataset of at least `episodes` whole episodes that a team plays, as demonstrations.

    With `rejected`, another team in the same environment, that one plays as many, from the same
    seed, and an answer prefers each episode of `policy` to one of it; the sides are drawn. Answers
    have the source ``contrast:NAME``. The folder appears when it is complete.
    """
    folder, num_envs = Path(folder), min(num_envs, episodes)
    teams = [policy] if rejected is None else [policy, rejected]
    count = -(-episodes // num_envs) * num_envs
    origin: dict[str, Option] = {"policy": printable(name), "seed": seed, "greedy": greedy}
    returns = []
    with (
        whole_folder(folder, "choose another folder") as partial,
        output(folder, "free some space, or choose another folder"),
    ):
        made = PreferenceDataset.create(
            partial,
            policy.spec,
            environment=policy.config.env.name,
            options=policy.config.env.options,
            origin=origin,
        )
        for place, team in enumerate(teams):
            records = played(team, count, greedy=greedy, seed=seed, num_envs=num_envs)
            quiet = not get_console().is_terminal
            shown = track(records, "playing", total=count, transient=True, disable=quiet)
            total = 0.0
            for index, record in enumerate(shown):
                record = replace(record, demonstration=place == 0)
                made.add_episode(record, place * count + index)
                total += record.episode_return
            returns.append(total / count)
        if rejected is not None:
            made.answers.extend(_answers(count, f"contrast:{printable(name)}", seed))
    return Sampled(folder=folder, episodes=count, returns=tuple(returns))


def played(
    policy: Policy, episodes: int, *, greedy: bool, seed: int, num_envs: int
) -> Iterator[EpisodeRecord]:
    """Yield whole episodes of a team, equally many from each of `num_envs` environments.

    To take the first that end would favour short ones. Episode k comes from environment
    k modulo `num_envs`; equal seeds start their first episodes alike.
    """
    seeds, per_env = Seeds(seed), -(-episodes // num_envs)
    waiting: dict[int, EpisodeRecord] = {}
    ended, given = [0] * num_envs, 0
    with policy.open_env(num_envs) as env:
        steps = min(env.spec.max_steps, 200)
        replay = ReplayBuffer(
            env.spec,
            steps,
            max_steps=(env.spec.max_steps + 2 * steps) * num_envs,
            max_episodes=steps * num_envs,
            holdout_every=2,
            device=torch.device("cpu"),
        )
        collector = Collector(
            env,
            steps,
            seed=seeds.integer("evaluation environment"),
            generator=seeds.torch("evaluation actions"),
            device=torch.device("cpu"),
        )
        while min(ended) < per_env:
            rollout = collector.collect(policy.actor, greedy=greedy)[0]
            first = replay.num_finished
            replay.append(rollout)
            for offset, index in enumerate(rollout.episodes.env.tolist()):
                if ended[index] < per_env:
                    record = record_of(replay, env.spec, first + offset)
                    waiting[ended[index] * num_envs + index] = record
                ended[index] += 1
            while given in waiting:
                yield waiting.pop(given)
                given += 1


def _answers(count: int, source: str, seed: int) -> list[Answer]:
    """Return an answer for each chosen episode, which is first in half of the pairs."""
    generator = Seeds(seed).torch("contrast sides")
    is_first = (torch.rand(count, generator=generator) < 0.5).tolist()
    at = now()
    return [
        Answer(first=i, second=count + i, label=1.0, source=source, at=at)
        if chosen_is_first
        else Answer(first=count + i, second=i, label=0.0, source=source, at=at)
        for i, chosen_is_first in enumerate(is_first)
    ]
