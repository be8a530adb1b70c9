"""A run goes on with another number of processes, with its episodes and its answers."""

import shutil
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

import marl
from benchmarks.trials import differences
from marl.data.replay import make_replay
from marl.policy import spec_in
from marl.preferences.dataset.export import export_run
from marl.preferences.resharding import losses, resharded
from marl.runs import train
from marl.utils.checkpoint import list_checkpoints, load_checkpoint, read_all
from marl.utils.launch import share_of
from marl.utils.ranks import Ranks
from tests.ranks import in_ranks

SMALL: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 6,
    "network.hidden_sizes": [8],
    "learner.rollout_steps": 20,
    "learner.epochs": 1,
    "learner.minibatches": 2,
    "reward.hidden_sizes": [8],
    "reward.gradient_steps": 1,
    "preferences.queries_per_iteration": 4,
    "preferences.holdout_every": 3,
    "preferences.replay_steps": 720,
    "preferences.replay_episodes": 60,
    "total_steps": 960,
}
"""Eight iterations of 120 steps; episodes of 25 span rollouts of 20, of which six are kept."""


def trained(
    ranks: Ranks, folder: Path, *, iterations: int = 100, total_steps: int = 960, **options: Any
) -> None:
    """Train for so many iterations at most, as one of several processes."""
    config = marl.load_config(overrides=SMALL | {"total_steps": total_steps})
    with closing(train(config, folder, ranks=ranks, **options)) as run:
        for _ in islice(run, iterations):
            pass


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of two processes."""
    folder = tmp_path_factory.mktemp("runs") / "pair"
    in_ranks(2, lambda ranks: trained(ranks, folder))
    return folder


def kept(states: list[dict[str, Any]], size: int, folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the whole episodes of all processes, and the answers about them, in any order.

    An episode is its side of the split, its return and its steps; an answer is two of them.
    """
    config = marl.load_config(overrides=SMALL)
    spec = spec_in(load_checkpoint(folder / "checkpoints")[1], "")
    share, whole, answers = share_of(config, size), [], []
    for state in states:
        feedback = state["feedback"]
        replay = make_replay(
            replace(spec, num_envs=share.env.num_envs),
            config.learner.rollout_steps,
            share.preferences,
            torch.device("cpu"),
        )
        replay.load_state_dict(feedback["replay"])
        known: dict[int, Any] = {}
        for held_out in (False, True):
            numbers = replay.available(held_out=held_out)
            returns = replay.episodes(numbers).returns.tolist()
            steps = replay.steps(numbers, torch.arange(25).expand(len(numbers), 25))
            for index, number in enumerate(numbers.tolist()):
                content = (steps.obs[index].sum().item(), steps.next_obs[index, -1].sum().item())
                known[number] = (held_out, returns[index], *content)
        whole += known.values()
        buffer = feedback["buffer"]
        for row in range(min(buffer["num_answered"], len(buffer["labels"]))):
            sides = [int(buffer[name][row]) for name in ("first", "second")]
            if all(side in known for side in sides):
                answers.append((*(known[side] for side in sides), float(buffer["labels"][row])))
    return sorted(whole), sorted(answers)


@pytest.mark.parametrize("size", [1, 3])
def test_every_whole_episode_is_kept_on_its_side_of_the_split(pair: Path, size: int) -> None:
    config = marl.load_config(overrides=SMALL)
    newest = list_checkpoints(pair / "checkpoints")[0]
    before = [state["trainer"] for state in read_all(newest)]
    after = [resharded(before, config, rank, size) for rank in range(size)]
    (episodes, answers), (had, told) = kept(after, size, pair), kept(before, 2, pair)
    assert episodes == had
    assert len(had) > 12
    assert any(episode[0] for episode in had)
    lost = losses(before, config, size)
    assert (lost.kept, lost.answers) == (len(answers), len(told) - len(answers))
    assert set(answers) <= set(told)
    assert (size == 1) == (lost.answers == 0)
    assert lost.kept > 0
    # 8 rollouts of 20 steps end 6 whole episodes of 25 and leave 10 steps of the next.
    assert lost.open_episodes == 6
    for first, second, label in answers:
        assert label == {1: 1.0, 0: 0.5, -1: 0.0}[(first[1] > second[1]) - (first[1] < second[1])]


def test_a_run_goes_on_with_more_processes_and_from_there_exactly(
    pair: Path, tmp_path: Path
) -> None:
    said: list[str] = []

    def go_on(folder: Path, iterations: int, **options: Any) -> None:
        in_ranks(
            3,
            lambda ranks: trained(
                ranks, folder, iterations=iterations, total_steps=1440, resume=True, **options
            ),
        )

    for name in ("once", "twice"):
        folder = tmp_path / name
        shutil.copytree(pair, folder)
        go_on(folder, 100 if name == "once" else 2, reshard=True, tell=said.append)
    go_on(folder, 100)
    assert said[0] == said[1]
    assert said[0].startswith("saved by 2, now trained by 3 processes: 6 open episodes are cut, ")
    assert differences(tmp_path / "once", tmp_path / "twice") == []


def test_all_processes_episodes_are_exported(pair: Path, tmp_path: Path) -> None:
    states = [s["trainer"] for s in read_all(list_checkpoints(pair / "checkpoints")[0])]
    episodes, answers = kept(states, 2, pair)
    exported = export_run(pair, tmp_path / "data")
    assert (exported.episodes, exported.answers) == (len(episodes), len(answers))
