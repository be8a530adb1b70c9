"""A reward model as labeller: its scores, and the control of their length.

Axes: M episodes, B pairs.
"""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError, RewardConfig
from marl.config.io import load_config
from marl.config.preferences import ModelConfig
from marl.data.types import Rewards, Transitions
from marl.nn.normalisation import TeamNorm
from marl.preferences import EpisodePairs
from marl.preferences.dataset import EpisodeArchive, EpisodeRecord
from marl.preferences.reward_labeller import LengthControl, RewardLabeller
from marl.rewards import RewardLearner, make_reward_learner
from marl.rewards.io import load_reward, save_reward
from marl.rewards.scoring import score_episodes
from tests.reward_models import CPU, make_spec

LENGTHS = [1, 2, 3, 4, 5]


class StateReward(nn.Module):
    """R is the first feature of the state, and a step is worth `per_step` more."""

    def __init__(self, per_step: float = 0.0) -> None:
        super().__init__()
        self.per_step = nn.Parameter(torch.tensor(per_step))
        self.calls = 0

    def forward(self, transitions: Transitions) -> Rewards:
        self.calls += 1
        return Rewards(team=transitions.state[..., 0] + self.per_step)


def archive_of(sums: list[float]) -> EpisodeArchive:
    """Return episodes of 1, 2, ... steps whose states sum up to these numbers."""
    records = []
    for total, length in zip(sums, LENGTHS, strict=True):
        state = torch.zeros(length, 5)
        state[0, 0] = total
        records.append(
            EpisodeRecord(
                obs=torch.zeros(length, 3, 4).numpy(),
                state=state.numpy(),
                actions=torch.zeros(length, 3, dtype=torch.int64).numpy(),
                final_obs=torch.zeros(3, 4).numpy(),
                final_state=torch.zeros(5).numpy(),
                facts=torch.zeros(0).numpy(),
                step_facts=torch.zeros(length, 0).numpy(),
                episode_return=0.0,
                terminated=True,
            )
        )
    numbers = range(10, 10 + len(sums))
    return EpisodeArchive(numbers, records, holdout_every=1000, device=CPU)


def labeller_of(model: StateReward, **settings: float) -> RewardLabeller:
    """Return a labeller whose S is the plain sum of the rewards: alpha / T_max is 1."""
    learner = RewardLearner(model, "mine", RewardConfig(alpha=10.0), 10, threads=1, device=CPU)
    control = {"length_control": True} | settings
    return RewardLabeller(ModelConfig(run="somewhere", **control), learner)


def pairs_of(archive: EpisodeArchive, *pairs: tuple[int, int]) -> EpisodePairs:
    first, second = torch.tensor(pairs).unbind(dim=1)
    return EpisodePairs(first=archive.episodes(first + 10), second=archive.episodes(second + 10))


def test_episodes_are_scored_in_passes_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    # Episodes of 1 to 5 steps: with 10 rows a pass, two at a time; with 3, one at a time.
    archive = archive_of([3.0, 1.0, 2.0, -1.0, 2.0])
    learner = labeller_of(StateReward(), length_control=False).learner
    passes: list[int] = []

    def recorded(steps: Transitions, weights: Tensor, lengths: Tensor) -> Tensor:
        passes.append(len(lengths))
        return RewardLearner.scores(learner, steps, weights, lengths)

    monkeypatch.setattr(learner, "scores", recorded)
    for max_rows, expected in ((25, [5]), (10, [2, 2, 1]), (3, [1] * 5)):
        monkeypatch.setattr("marl.data.replay.MAX_ROWS", max_rows)
        passes.clear()
        scores = score_episodes(learner, archive.episodes(archive.numbers))
        assert scores.tolist() == [3.0, 1.0, 2.0, -1.0, 2.0]
        assert passes == expected
    none = score_episodes(learner, archive.episodes(archive.numbers[:0]))
    assert none.shape == (0,)


def test_the_score_is_the_sum_over_all_steps() -> None:
    archive = archive_of([3.0, 1.0, 2.0, -1.0, 2.0])
    labeller = labeller_of(StateReward(0.5), length_control=False)
    scores = score_episodes(labeller.learner, archive.episodes(archive.numbers))
    assert scores.tolist() == pytest.approx([3.5, 2.0, 3.5, 1.0, 4.5])
    labels = labeller(pairs_of(archive, (0, 1), (1, 2), (0, 2), (3, 4)))
    assert labels.tolist() == [1.0, 0.0, 0.5, 0.0]


def test_parts_of_many_episodes_score_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    archive, learner = archive_of([3.0, 1.0, 2.0, -1.0, 2.0]), labeller_of(StateReward()).learner
    episodes = archive.episodes(archive.numbers)
    together = score_episodes(learner, episodes)
    monkeypatch.setattr("marl.data.replay.MAX_ROWS", 11)  # two episodes of 5 steps at once
    assert torch.equal(score_episodes(learner, episodes), together)


def test_the_constant_by_hand() -> None:
    # Longer less shorter: the scores differ by 4 and 2, the lengths by 1 and 2: c = 6 / 3.
    control = LengthControl()
    assert control.constant == 0.0
    control.update(torch.tensor([4.0, -2.0]), torch.tensor([1, -2]))
    assert control.constant == pytest.approx(2.0)
    # A pair of equal lengths says nothing, nor does one without a score.
    control.update(torch.tensor([100.0, math.nan]), torch.tensor([0, 3]))
    assert control.constant == pytest.approx(2.0)
    gaps = torch.tensor([4.0, -2.0]) - control.constant * torch.tensor([1.0, -2.0])
    oriented = gaps * torch.tensor([1.0, -1.0])
    assert float(oriented.mean()) == pytest.approx(0.0)


def test_what_the_length_adds_is_taken_out() -> None:
    """What counts is `quality`, but each step is worth 3 to the model, which drowns it."""
    quality = [0.5, -0.5, 0.0, -0.5, 0.5]  # does not grow with the length
    archive = archive_of(quality)
    every = [(a, b) for a in range(5) for b in range(5) if a != b]
    pairs = pairs_of(archive, *every)
    plain = labeller_of(StateReward(3.0), length_control=False)(pairs)
    assert plain.tolist() == [float(a > b) for a, b in every]  # the longer one, always
    controlled = labeller_of(StateReward(3.0))
    labels = controlled(pairs)
    # Each pair twice, as (a, b) and (b, a): c = sum of 3 dL + dq over sum of dL = 3 + 2 / 20.
    # Longer less shorter quality: -1 -.5 -1 0 +.5 0 +1 -.5 +.5 +1 = 0, so c is 3 exactly.
    assert controlled.metrics()["length_constant"] == pytest.approx(3.0)
    decided = [
        (p, float(label))
        for p, label in zip(every, labels, strict=True)
        if quality[p[0]] != quality[p[1]]
    ]
    assert decided
    assert all(label == float(quality[a] > quality[b]) for (a, b), label in decided)


def test_soft_labels_by_hand() -> None:
    archive = archive_of([3.0, 1.0, 2.0, -1.0, 2.0])
    labeller = labeller_of(StateReward(), length_control=False, temperature=2.0)
    # (3 - 1) / 2 = 1
    assert labeller(pairs_of(archive, (0, 1))).tolist() == pytest.approx([1 / (1 + math.exp(-1))])


def test_a_score_that_is_no_number_is_no_answer() -> None:
    archive = archive_of([math.nan, 1.0, 2.0, -1.0, 2.0])
    labels = labeller_of(StateReward())(pairs_of(archive, (0, 1), (1, 2)))
    assert labels[0].isnan()
    assert not labels[1].isnan()


def test_an_episode_is_scored_once_and_the_oldest_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, archive = StateReward(), archive_of([3.0, 1.0, 2.0, -1.0, 2.0])
    labeller = labeller_of(model)
    pairs = pairs_of(archive, (0, 1), (1, 0), (0, 2))
    labels = labeller(pairs)
    calls = model.calls
    assert torch.equal(labeller(pairs.rows(torch.tensor([0]))), labels[:1])
    assert model.calls == calls
    monkeypatch.setattr("marl.preferences.reward_labeller.CACHED_EPISODES", 2)
    labeller(pairs)
    labeller(pairs_of(archive, (1, 2)))
    assert model.calls == calls
    labeller(pairs_of(archive, (0, 1)))
    assert model.calls == calls + 1


def test_numbers_of_another_replay_are_other_episodes() -> None:
    labeller = labeller_of(StateReward(), length_control=False)
    one, other = archive_of([1.0, 2.0, 0, 0, 0]), archive_of([2.0, 1.0, 0, 0, 0])
    assert labeller(pairs_of(one, (0, 1))).tolist() == [0.0]
    assert labeller(pairs_of(other, (0, 1))).tolist() == [1.0]


def test_it_goes_on_as_it_was_even_if_its_run_has_trained_on() -> None:
    archive = archive_of([3.0, 1.0, 2.0, -1.0, 2.0])
    pairs = pairs_of(archive, (0, 1), (1, 2), (3, 4), (0, 3))
    labeller = labeller_of(StateReward(0.5))
    labeller(pairs)
    other = labeller_of(StateReward(-7.0))
    other.load_state_dict(labeller.state_dict())
    more = pairs_of(archive, (4, 1), (2, 3), (4, 0))
    assert torch.equal(other(more), labeller(more))
    assert other.metrics() == labeller.metrics()


class PerAgentReward(nn.Module):
    """One of the user's own, which reads every agent alone: any team size fits."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self.score = nn.Linear(spec.obs_size, 1)

    def forward(self, transitions: Transitions) -> Tensor:
        return self.score(transitions.obs).sum(dim=(-2, -1))


def saved(folder: Path, spec: EnvSpec, overrides: dict[str, str]) -> None:
    """Write a reward model that nothing has fitted, as `fit_reward` does."""
    config = load_config(overrides=overrides)
    norm = TeamNorm(spec, enabled=True)
    learner = make_reward_learner(spec, config, norm, torch.Generator(), CPU)
    norm.state_norm.mean.fill_(2.5)
    save_reward(folder, 7, config, spec, learner)


def test_a_saved_model_comes_back_with_its_input_statistics(tmp_path: Path) -> None:
    saved(tmp_path, make_spec(), {})
    learner = load_reward(tmp_path, make_spec(), "here")
    assert learner.model.norm.state_norm.mean.tolist() == [2.5] * 5
    assert not any(p.requires_grad for p in learner.model.parameters())


def test_returns_label_nothing(tmp_path: Path) -> None:
    saved(tmp_path, make_spec(), {"algorithm": "ircr"})
    with pytest.raises(ConfigError, match=r"here: the reward of .* \(algorithm ircr\) repeats the"):
        load_reward(tmp_path, make_spec(), "here")


def test_a_shipped_model_for_other_shapes_names_both_sides(tmp_path: Path) -> None:
    saved(tmp_path, make_spec(), {})
    with pytest.raises(ConfigError) as caught:
        load_reward(tmp_path, make_spec(continuous=True), "preferences.model.run")
    message = str(caught.value)
    assert f"the reward of {tmp_path} was learned on nowhere (kind of action: discrete)" in message
    assert "this run is on nowhere (kind of action: continuous)" in message


def test_an_own_model_that_reads_agents_alone_fits_other_team_sizes(tmp_path: Path) -> None:
    name = "tests.unit.test_reward_labeller:PerAgentReward"
    small = EnvSpec(**{**vars(make_spec()), "obs_sizes": (4,) * 2, "action_sizes": (2,) * 2})
    saved(tmp_path, small, {"reward.model": name})
    assert load_reward(tmp_path, make_spec(), "here").name == name
    wider = EnvSpec(**{**vars(make_spec()), "obs_sizes": (9,) * 3})
    with pytest.raises(
        ConfigError,
        match=r"(?s)here: the reward model tests.*PerAgentReward of .*"
        r"does not fit nowhere: .*size mismatch",
    ):
        load_reward(tmp_path, wider, "here")
