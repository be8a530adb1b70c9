"""The replay buffer gives back exactly what was collected, never a row of another episode."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from marl.config import ConfigError, RewardConfig
from marl.data.replay import ReplayBuffer, sample_steps, sampled
from marl.data.types import Rollout
from tests.scripted import ScriptedEnv, scripted_collector

STEPS = 4
"""T, steps of a rollout."""


def make_replay(env: ScriptedEnv, max_steps: int = 32, **options: int) -> ReplayBuffer:
    """Return a buffer of `max_steps` steps; nearly nothing is held out."""
    settings = {"max_episodes": 64, "holdout_every": 1000} | options
    return ReplayBuffer(
        env.spec, STEPS, max_steps=max_steps, device=torch.device("cpu"), **settings
    )


def filled(
    lengths: list[list[int]], rollouts: int, max_steps: int = 32, **options: Any
) -> tuple[ReplayBuffer, list[Rollout]]:
    """Return a buffer after some rollouts, and copies of those."""
    names = ("agents_die", "tells_final_alive", "masks_actions", "tells_facts")
    kinds = {k: options.pop(k) for k in names if k in options}
    env = ScriptedEnv(lengths, **kinds)
    collector, actor = scripted_collector(env, STEPS)
    replay, seen = make_replay(env, max_steps, **options), []
    for _ in range(rollouts):
        rollout = collector.collect(actor)[0]
        replay.append(rollout)
        seen.append(copy.deepcopy(rollout))
    return replay, seen


def all_steps(replay: ReplayBuffer, number: int) -> Any:
    return replay.episodes(torch.tensor([number])).transitions()


@pytest.mark.parametrize("rollouts", range(1, 13))
def test_step_facts_are_those_of_their_step(rollouts: int) -> None:
    """Also after the ring has wrapped around; steps beyond the end repeat the last."""
    replay, _ = filled([[3, 5, 7], [6, 2]], rollouts, tells_facts=True)
    numbers = replay.available()
    episodes = replay.episodes(numbers)
    facts = episodes.facts_at(torch.arange(8).expand(len(numbers), 8))
    for index, length in enumerate(episodes.lengths.tolist()):
        assert facts[index, :, 1].tolist() == [min(t + 1, length) for t in range(8)]
        assert facts[index, :, 0].unique().tolist() == facts[index, -1:, 0].tolist()
    assert torch.equal(facts[:, -1], episodes.facts)


def test_some_of_the_episodes_are_a_view_too() -> None:
    replay, _ = filled([[3, 5, 7], [6, 2]], 4, tells_facts=True)
    every = replay.episodes(replay.available())
    chosen = torch.tensor([2, 0])
    some = every.rows(chosen)
    assert some.numbers.tolist() == every.numbers[chosen].tolist()
    assert torch.equal(some.facts, every.facts[chosen])
    assert torch.equal(some.transitions().obs, every.rows(chosen).transitions().obs)
    assert len(every.rows(every.lengths > 100)) == 0


@pytest.mark.parametrize("rollouts", range(1, 13))
def test_every_available_episode_is_whole(rollouts: int) -> None:
    """Also after the ring of 16 steps (4 rollouts) has wrapped around, several times."""
    lengths = [[3, 5, 7], [6, 2]]
    replay, _ = filled(lengths, rollouts)
    for number in replay.available().tolist():
        episode = replay.episodes(torch.tensor([number]))
        steps, length = episode.transitions(), int(episode.lengths)
        env, index = (int(x) for x in steps.state[0, 0, :2])
        assert length == lengths[env][index % len(lengths[env])]
        assert steps.state[0].tolist() == [[env, index, t] for t in range(length)]
        assert steps.next_state[0].tolist() == [[env, index, t + 1] for t in range(length)]
        assert steps.next_obs[0, -1, 1].tolist() == [env, index, length, 1]  # not the reset one
        assert steps.actions[0, :, 0].tolist() == [t % 3 for t in range(length)]
        assert steps.terminated[0].tolist() == [False] * (length - 1) + [index % 2 == 0]
        assert float(episode.returns) == length + 10 * index
        assert bool(episode.terminated) == (index % 2 == 0)


def test_facts_of_the_end_stay_with_their_episode() -> None:
    replay, _ = filled([[3, 5, 7], [6, 2]], 5, max_steps=64, tells_facts=True)
    episodes = replay.episodes(replay.available())
    indices = episodes.transitions().state[:, 0, 1]
    expected = torch.stack((indices, episodes.lengths.to(torch.float32)), dim=-1)
    assert torch.equal(episodes.facts, expected)


def test_episodes_are_numbered_by_their_end() -> None:
    # Ends: copy 0 at steps 3, 8, 15, 18; copy 1 at 6, 8, 14, 16 (1-based), in 20 steps.
    replay, _ = filled([[3, 5, 7], [6, 2]], 5, max_steps=64)
    expected = [(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (0, 2), (1, 3), (0, 3)]
    found = [tuple(all_steps(replay, n).state[0, 0, :2].int().tolist()) for n in range(8)]
    assert found == expected
    assert replay.num_finished == 8


def test_an_episode_expires_when_its_first_step_is_overwritten() -> None:
    # One copy, episodes of 3, a ring of 8 steps. After 8 steps: episodes 0 (steps 0-2) and
    # 1 (3-5). After 12: rows of steps 0-3 are gone, so 0 and 1 go and 2 (6-8), 3 (9-11) stay.
    replay, _ = filled([[3]], 2, max_steps=8)
    assert replay.available().tolist() == [0, 1]
    replay, _ = filled([[3]], 3, max_steps=8)
    assert replay.available().tolist() == [2, 3]
    assert replay.holds(torch.tensor([0, 1, 2, 3])).tolist() == [False, False, True, True]


def test_the_newest_batch_is_known() -> None:
    replay, _ = filled([[3]], 3, max_steps=8)
    assert replay.latest == 2  # episodes 2 and 3 ended in steps 8 to 11
    replay, _ = filled([[5]], 4, max_steps=40)
    assert replay.latest == 2  # ends at 4, 9, 14: the fourth rollout holds episode 2
    replay, _ = filled([[6]], 5, max_steps=40)
    assert replay.latest == 2  # ends at 5, 11, 17: the fifth rollout (16 to 19) holds episode 2
    replay, _ = filled([[6]], 4, max_steps=40)
    assert replay.latest == 1  # the fourth (12 to 15) holds none


def test_more_episodes_than_fit_keep_the_newest() -> None:
    # Environments end episodes of one step: 12 in a rollout of 4 steps, of which 5 fit.
    replay, _ = filled([[1], [1], [1]], 1, max_episodes=5)
    assert replay.num_finished == 12
    assert replay.available().tolist() == [7, 8, 9, 10, 11]
    # Episode 11 is the third copy's fourth.
    assert all_steps(replay, 11).state[0, 0].tolist() == [2, 3, 0]
    replay, _ = filled([[1], [1], [1]], 2, max_episodes=5)
    assert replay.available().tolist() == [19, 20, 21, 22, 23]


def test_memory_is_bounded_and_constant() -> None:
    env = ScriptedEnv([[3, 5, 7], [6, 2]], agents_die=True, masks_actions=True)
    collector, actor = scripted_collector(env, STEPS)
    replay = make_replay(env)
    # Per step of a copy, N = 2, O = 4, S = 3, A = 3: obs 32, state 12, actions 16, alive 2,
    # mask 6 bytes; 32 steps. Per episode: obs 32, state 12, alive 2, start, env, length 24,
    # terminated 1, return 4 bytes; 64 episodes.
    expected = 32 * 68 + 64 * 75
    addresses = {t.data_ptr() for t in replay._steps.values()}
    for _ in range(10):
        assert replay.num_bytes == expected
        replay.append(collector.collect(actor)[0])
    assert {t.data_ptr() for t in replay._steps.values()} == addresses


def test_the_buffer_owns_its_memory() -> None:
    """The collector reuses a rollout's tensors; what is stored must not change with them."""
    env = ScriptedEnv([[3]])
    collector, actor = scripted_collector(env, STEPS)
    replay = make_replay(env)
    rollout = collector.collect(actor)[0]
    replay.append(rollout)
    before = copy.deepcopy(all_steps(replay, 0))
    for tensor in (rollout.transitions.obs, rollout.transitions.next_obs, rollout.task_rewards):
        tensor.fill_(-1.0)
    for name, tensor in vars(all_steps(replay, 0)).items():
        if tensor is not None:
            assert torch.equal(tensor, getattr(before, name)), name


def test_the_held_out_episodes_are_every_so_many_th() -> None:
    replay, _ = filled([[1], [1], [1]], 2, holdout_every=4)
    held_out, rest = replay.available(held_out=True).tolist(), replay.available().tolist()
    assert held_out == [3, 7, 11, 15, 19, 23]
    assert sorted(held_out + rest) == list(range(24))


@pytest.mark.parametrize("tells", [True, False])
def test_steps_equal_the_rollouts_they_came_from(tells: bool) -> None:
    kinds = {"agents_die": True, "tells_final_alive": tells, "masks_actions": True}
    replay, rollouts = filled([[3, 6]], 4, max_steps=40, **kinds)
    # One copy: episode 1 spans steps 3 to 8, the first three rollouts.
    steps = all_steps(replay, 1)
    for name in ("obs", "state", "actions", "next_obs", "next_state", "alive", "action_mask"):
        whole = torch.cat([getattr(r.transitions, name)[:, 0] for r in rollouts])
        assert torch.equal(getattr(steps, name)[0], whole[3:9]), name
    next_alive = torch.cat([r.transitions.next_alive[:, 0] for r in rollouts])  # type: ignore[index]
    assert torch.equal(steps.next_alive[0], next_alive[3:9])


@pytest.mark.parametrize("rollouts", [0, 1, 3, 4, 9, 12])
def test_only_rows_that_were_written_are_saved_and_can_be_read_alone(rollouts: int) -> None:
    """16 steps of each of two environments are kept; so are 5 episodes, 7 of which end in four
    rollouts."""
    kinds = {"tells_facts": True, "agents_die": True, "max_episodes": 5}
    lengths = [[3, 1, 7], [6, 2]]
    replay, _ = filled(lengths, rollouts, **kinds)
    state = copy.deepcopy(replay.state_dict())
    assert len(state["steps"]["obs"]) == len(state["facts"]) == min(16, STEPS * rollouts)
    for name in ("finals", "episodes"):
        assert {len(column) for column in state[name].values()} == {min(5, replay.num_finished)}
    alone = make_replay(ScriptedEnv(lengths, tells_facts=True, agents_die=True), max_episodes=5)
    on_meta = ReplayBuffer(
        ScriptedEnv(lengths, tells_facts=True, agents_die=True).spec,
        STEPS,
        max_steps=32,
        max_episodes=5,
        holdout_every=1000,
        device=torch.device("meta"),
    )
    on_meta.adopt(state, torch.device("cpu"))
    alone.load_state_dict(state)
    numbers = replay.available()
    known = torch.arange(replay.num_finished)
    for other in (alone, on_meta):
        assert torch.equal(other.available(), numbers)
        assert torch.equal(other.holds(known), replay.holds(known))
        assert torch.equal(other.returns(), replay.returns())
        assert torch.equal(other.final_states(numbers), replay.final_states(numbers))
        theirs, mine = (each.episodes(numbers) for each in (other, replay))
        assert torch.equal(theirs.facts, mine.facts)
        if len(numbers):
            for name, expected in vars(mine.transitions()).items():
                found = getattr(theirs.transitions(), name)
                assert expected is found is None or torch.equal(expected, found), name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(time=7), r"of \(8, 2, 0\) was saved, not torch.float32 of \(7, 2, 0\)"),
        (lambda s: s.update(time=-8), "was saved, not"),
        (lambda s: s.update(time=10**30), "was saved, not"),
        (lambda s: s.update(num_finished=5), "was saved, not"),
        (lambda s: s["finals"].update(obs=torch.zeros(4, 2, 10**4)), "was saved, not"),
        (lambda s: s["steps"].update(obs=s["steps"]["obs"].double()), "torch.float64"),
        (lambda s: s["episodes"]["length"].fill_(10**12), "length lies outside of 0 to 8"),
        (lambda s: s["episodes"]["env"].fill_(-1), "env lies outside of 0 to 1"),
    ],
)
def test_what_a_file_says_of_sizes_is_not_believed(change: Any, words: str) -> None:
    replay, _ = filled([[3], [4]], 2)
    state = copy.deepcopy(replay.state_dict())
    change(state)
    for name in ("load_state_dict", "adopt"):
        other = make_replay(ScriptedEnv([[3], [4]]))
        options = [torch.device("cpu")] if name == "adopt" else []
        with pytest.raises(ValueError, match=words):
            getattr(other, name)(state, *options)
        assert other.time == 0


def test_deaths_in_the_last_step_are_kept_and_saved() -> None:
    # Agent 0 acts in step 0, agent 1 in steps 0 and 1: in episodes of 1 step, agent 0 dies at the
    # end, and in those of 2 steps agent 1 does.
    kinds = {"agents_die": True, "tells_final_alive": True}
    replay, _ = filled([[1, 2]], 2, max_steps=40, **kinds)
    other, _ = filled([[1, 2]], 0, max_steps=40, **kinds)
    other.load_state_dict(copy.deepcopy(replay.state_dict()))
    for buffer in (replay, other):
        last = [all_steps(buffer, number).next_alive[0, -1].tolist() for number in (0, 1)]
        assert last == [[False, True], [False, False]]


def test_steps_beyond_the_end_repeat_the_last() -> None:
    replay, _ = filled([[3, 6]], 4, max_steps=40)
    steps = replay.episodes(torch.tensor([0, 1])).transitions()
    assert steps.obs.shape == (2, 6, 2, 4)
    assert steps.state[0, :, 2].tolist() == [0, 1, 2, 2, 2, 2]
    assert steps.next_state[0, :, 2].tolist() == [1, 2, 3, 3, 3, 3]


def test_state_round_trip() -> None:
    replay, _ = filled([[3, 5, 7], [6, 2]], 7, tells_facts=True)
    env = ScriptedEnv([[3, 5, 7], [6, 2]], tells_facts=True)
    other, _ = filled([[2], [4]], 1, tells_facts=True)
    other.load_state_dict(copy.deepcopy(replay.state_dict()))
    other.undo()  # what was taken in before is not taken back
    offsets = torch.arange(7).expand(len(replay.available()), 7)
    facts = [each.facts_at(replay.available(), offsets) for each in (replay, other)]
    assert torch.equal(*facts)
    assert torch.equal(other.available(), replay.available())
    assert other.latest == replay.latest
    collector, actor = scripted_collector(env, STEPS)
    rollout = collector.collect(actor)[0]
    for each in (replay, other):
        each.append(rollout)
    numbers = replay.available()
    assert torch.equal(other.available(), numbers)
    for name, tensor in vars(replay.episodes(numbers).transitions()).items():
        if tensor is not None:
            assert torch.equal(getattr(other.episodes(numbers).transitions(), name), tensor), name


def test_a_buffer_too_small_for_one_episode_is_refused() -> None:
    # Two environments, episodes of 7, rollouts of 4: at least 7 + 4 steps each, in whole rollouts.
    env = ScriptedEnv([[7], [7]])
    with pytest.raises(ConfigError, match=r"preferences.replay_steps: got 16, but 2 environments"):
        make_replay(env, max_steps=16)
    with pytest.raises(ConfigError) as caught:
        make_replay(env, max_steps=8)
    needed = int(str(caught.value).split()[-1])
    assert needed == (7 + 2 * 4) * 2  # a rollout more, since its length need not divide the ring
    assert make_replay(env, max_steps=needed).ring_steps >= 11


def test_a_ring_of_an_episode_and_a_rollout_is_enough() -> None:
    assert make_replay(ScriptedEnv([[8]]), max_steps=12).ring_steps == 8 + STEPS


def test_a_new_buffer_is_empty_and_has_nothing_to_take_back() -> None:
    replay = make_replay(ScriptedEnv([[3]]))
    for _ in range(2):
        assert (replay.time, replay.num_finished, replay.latest) == (0, 0, 0)
        assert len(replay.available()) == 0
        assert replay.return_moments() == (0.0, 1.0)
        replay.undo()


def test_an_episode_is_held_while_its_slot_and_its_first_step_are_its_own() -> None:
    # 12 episodes of one step, of which 5 are kept: 6 shares its slot with 11, which is recent.
    replay, _ = filled([[1], [1], [1]], 1, max_episodes=5)
    assert replay.holds(torch.tensor([6, 7, 11])).tolist() == [False, True, True]
    # A ring of 8 steps after 8 steps: the first step of episode 0 is the oldest row.
    replay, _ = filled([[3]], 2, max_steps=8)
    assert replay.holds(torch.tensor([0, 1])).tolist() == [True, True]


@pytest.mark.parametrize("kept", [64, 5])
def test_episodes_know_their_environment_first_step_and_final_state(kept: int) -> None:
    # In the order of their ends (see above), environment 0 has episodes of 3, 5, 7, 3 steps from 0,
    # 3, 8, 15 on, and 1 has 6, 2, 6, 2 from 0, 6, 8, 14 on.
    replay, _ = filled([[3, 5, 7], [6, 2]], 5, max_steps=64, max_episodes=kept)
    numbers = torch.arange(8)[-kept:]
    envs, starts = replay.origins(numbers)
    assert envs.tolist() == [0, 1, 0, 1, 1, 0, 1, 0][-kept:]
    assert starts.tolist() == [0, 0, 3, 6, 8, 8, 14, 15][-kept:]
    final = replay.final_states(numbers).tolist()
    expected = [[0, 0, 3], [1, 0, 6], [0, 1, 5], [1, 1, 2], [1, 2, 6], [0, 2, 7], [1, 3, 2]]
    assert final == [*expected, [0, 3, 3]][-kept:]


def test_moments_of_the_kept_returns_by_hand() -> None:
    # One step pays 1 and 10 times the episode's number: 1, 11, 21, 31, of mean 16 and deviation
    # sqrt((225 + 25 + 25 + 225) / 4). Of the last two, 26 and 5. A single one has deviation 1.
    replay, _ = filled([[1]], 1)
    assert replay.return_moments() == pytest.approx((16.0, 125**0.5))
    replay, _ = filled([[1]], 1, max_episodes=2)
    assert replay.return_moments() == pytest.approx((26.0, 5.0))
    replay, _ = filled([[4]], 1)
    assert replay.return_moments() == (4.0, 1.0)


def test_returns_that_are_missing_do_not_count() -> None:
    # Of 1, 11, 21, 31 the second is missing.
    _, rollouts = filled([[1]], 1)
    replay, episodes = make_replay(ScriptedEnv([[1]])), rollouts[0].episodes
    known = episodes.returns.where(episodes.returns != 11.0, torch.tensor(torch.nan))
    replay.append(replace(rollouts[0], episodes=replace(episodes, returns=known)))
    assert replay.returns().tolist() == [1.0, 21.0, 31.0]


@pytest.mark.parametrize("dies", [True, False])
def test_who_was_alive_is_that_of_the_steps(dies: bool) -> None:
    replay, _ = filled([[3, 5, 7], [6, 2]], 4, agents_die=dies)
    numbers = replay.available()
    offsets = torch.arange(8).expand(len(numbers), 8)
    alive = replay.alive_at(numbers, offsets)
    if dies:
        expected = replay.steps(numbers, offsets).alive
        assert alive is not None
        assert expected is not None
        assert not expected.all()
        assert torch.equal(alive, expected)
    else:
        assert alive is None


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_sampled_steps_are_all_steps_where_they_fit() -> None:
    offsets, weights = sample_steps(torch.tensor([2, 3]), 3, generator())
    assert offsets.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert weights.tolist() == [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]


@given(length=st.integers(1, 60), count=st.integers(1, 20), seed=st.integers(0, 2**31 - 1))
def test_sampled_steps_lie_in_their_strata_and_weigh_the_length(
    length: int, count: int, seed: int
) -> None:
    offsets, weights = sample_steps(
        torch.tensor([length]), count, torch.Generator().manual_seed(seed)
    )
    assert weights.sum().item() == pytest.approx(length, rel=1e-5)
    assert offsets.shape == weights.shape == (1, min(length, count))
    if length <= count:
        assert offsets[0].tolist() == list(range(length))
        return
    for stratum, offset in enumerate(offsets[0].tolist()):
        assert (
            stratum * length // count <= offset <= min((stratum + 1) * length / count, length - 1)
        )


def test_short_episodes_are_read_whole_beside_long_ones() -> None:
    offsets, weights = sample_steps(torch.tensor([2, 12, 4]), 4, generator())
    assert offsets[0, :2].tolist() == [0, 1]
    assert [offset // 3 for offset in offsets[1].tolist()] == offsets[2].tolist() == [0, 1, 2, 3]
    assert weights.tolist() == [[1.0, 1.0, 0.0, 0.0], [3.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("length", [1, 3, 7, 10])
def test_the_weighted_sum_of_sampled_steps_is_unbiased(length: int) -> None:
    # 20,000 estimates of sum t^2 from 4 steps each; the mean must lie within 4 standard errors.
    rewards = torch.arange(length, dtype=torch.float64) ** 2
    lengths = torch.full((20_000,), length)
    offsets, weights = sample_steps(lengths, 4, generator())
    estimates: Tensor = (weights * rewards[offsets]).sum(dim=-1)
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean() - rewards.sum()) <= 4 * error + 1e-5


def test_models_that_read_history_get_whole_episodes_in_their_order() -> None:
    # Episodes of 3 and 4 steps, of which a model without history gets two drawn steps.
    replay, _ = filled([[3], [4]], 1)
    episodes, config = replay.episodes(replay.available()), RewardConfig(sample_steps=2)
    steps, weights, lengths = sampled(episodes, config, generator(), reads_history=True)
    assert lengths.tolist() == [3, 4]
    assert weights.tolist() == [[1.0, 1.0, 1.0, 0.0], [1.0] * 4]
    assert steps.state[..., 2].tolist() == [[0, 1, 2, 2], [0, 1, 2, 3]]
    history = steps.history
    assert history is not None
    assert history.time_axis == 1
    assert history.hidden is None
    assert history.starts.tolist() == [[True, False, False, False]] * 2
    assert history.present is not None
    assert torch.equal(history.present, weights > 0)
    steps, weights, _ = sampled(episodes, config, generator(), reads_history=False)
    assert steps.history is None
    assert weights.tolist() == [[1.5, 1.5], [2.0, 2.0]]


def test_the_unbiased_loss_reads_different_steps() -> None:
    # Two of three steps: strata of one and a half share the middle one.
    replay, _ = filled([[3]] * 40, 1, max_steps=400)
    episodes = replay.episodes(replay.available())
    for unbiased in (False, True):
        config = RewardConfig(sample_steps=2, unbiased_regression=unbiased)
        steps, weights, _ = sampled(episodes, config, generator(), reads_history=False)
        first, second = steps.state[..., 2].unbind(dim=1)
        assert (weights == 1.5).all()
        assert (first == second).any() == (not unbiased)


def test_of_no_episodes_nothing_is_sampled() -> None:
    replay, _ = filled([[3]], 1)
    none = replay.episodes(torch.zeros(0, dtype=torch.int64))
    for count in (2, 7):
        config = RewardConfig(sample_steps=count)
        _, weights, lengths = sampled(none, config, generator(), reads_history=False)
        assert len(weights) == len(lengths) == 0


@pytest.mark.parametrize("rollouts", [1, 3, 9, 12])
def test_a_rollout_is_taken_back_without_a_trace(rollouts: int) -> None:
    """Also once the ring has wrapped around, and where more episodes end than are kept."""
    kinds = {"tells_facts": True, "agents_die": True, "max_episodes": 3}
    replay, _ = filled([[1, 5, 7], [1, 2]], rollouts, **kinds)
    before = copy.deepcopy(replay.state_dict())
    _, more = filled([[2, 3], [1, 1]], 1, tells_facts=True, agents_die=True)
    replay.append(more[0])
    assert replay.time != before["time"]
    for _ in range(2):  # the second time, nothing is left to be taken back
        replay.undo()
        after = replay.state_dict()
        assert [after[name] for name in ("time", "num_finished", "latest")] == [
            before[name] for name in ("time", "num_finished", "latest")
        ]
        for group in ("steps", "finals", "episodes"):
            for name, tensor in before[group].items():
                assert torch.equal(after[group][name], tensor), name
        assert torch.equal(after["facts"], before["facts"])
