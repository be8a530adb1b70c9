"""Where the time limit ends the task, critics see how much of it is over."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from envs import EnvSpec, SparseRewards
from marl.data.rollout import Collector
from marl.data.types import Rewards
from marl.learners.base import make_learner
from marl.learners.critics import AgentCritics, TeamCritic, with_time
from marl.learners.gae import read_inputs, timed
from marl.learners.mappo import Ippo, Mappo
from marl.nn.normalisation import TeamNorm
from marl.trainer import Trainer
from tests.learners import (
    CPU,
    LENGTHS,
    NETWORK,
    collect,
    generator,
    make_mappo,
    mappo_of,
    with_unit_values,
)
from tests.scripted import ScriptedEnv
from tests.small_runs import small


def finite(env: ScriptedEnv) -> ScriptedEnv:
    env.spec = replace(env.spec, finite_horizon=True)
    return env


def test_steps_are_counted_from_the_start_of_an_episode_also_over_rollouts() -> None:
    env = ScriptedEnv(LENGTHS)
    collector = Collector(env, 7, seed=0, generator=generator(), device=CPU)
    actor = make_mappo(env.spec).actor
    for _ in range(4):
        rollout, _ = collector.collect(actor)
        # The state is (copy, episode, t).
        assert torch.equal(rollout.elapsed, rollout.transitions.state[..., 2].long())


def test_a_collector_counts_on_after_it_was_saved() -> None:
    trainer = Trainer(small(**{"learner.rollout_steps": 20}))
    expected = np.arange(20)[:, None].repeat(4, axis=1)
    for rollout_number in range(3):
        state = trainer.collector.state_dict()
        rollout, _ = trainer.collector.collect(trainer.learner.actor)
        assert rollout.elapsed.tolist() == ((expected + 20 * rollout_number) % 25).tolist()
        trainer.collector.load_state_dict(state)
        trainer.collector.collect(trainer.learner.actor)


@pytest.mark.parametrize("kind", [Mappo, Ippo])
def test_the_time_stands_behind_what_a_critic_reads(kind: type[Mappo]) -> None:
    env = finite(ScriptedEnv(LENGTHS))
    mappo = make_mappo(env.spec, kind=kind)
    rollout = collect(mappo, env)
    for inputs in mappo._critic_inputs(rollout).values():
        steps, ends = (
            (inputs.state, inputs.end_state)
            if kind is Mappo
            else (inputs.obs[:, :, 0], inputs.end_obs[:, 0])
        )
        # max_steps is 6; what stands before the time ends with the episode's step in both.
        assert torch.allclose(steps[..., -1], 2.0 * rollout.elapsed / 6 - 1.0)
        at_ends = rollout.transitions.next_state.flatten(0, 1)[inputs.ends][:, 2]
        assert torch.allclose(ends[..., -1], 2.0 * at_ends / 6 - 1.0)


def test_an_interrupted_episode_has_no_time() -> None:
    env = ScriptedEnv(LENGTHS)
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    assert mappo._critic_inputs(rollout)["team"].state.shape[-1] == env.spec.state_size


def test_a_picture_has_a_byte_of_it() -> None:
    spec = EnvSpec(
        name="pictures",
        num_envs=1,
        obs_sizes=(48,) * 2,
        obs_image=(4, 4, 3),
        state_size=96,
        state_images=(2, 4, 4, 3),
        action_kind="discrete",
        action_sizes=(2, 2),
        max_steps=10,
        finite_horizon=True,
    )
    elapsed = torch.tensor([0, 5, 10])
    picture = torch.randint(256, (3, 96), dtype=torch.uint8, generator=generator())
    state = with_time(picture, elapsed, 10)
    assert state.dtype == torch.uint8
    assert state[:, -1].tolist() == [0, 128, 255]
    critic = TeamCritic(spec, NETWORK, generator())
    same = with_time(picture[:1].expand(3, 96), elapsed, 10)
    assert len(set(critic(None, same).tolist())) == 3
    own = AgentCritics(spec, NETWORK, generator(), sees_state=False)
    obs = with_time(picture[:1, :48].expand(3, 2, 48), elapsed, 10)
    assert len(set(own(obs, None)[:, 0].tolist())) == 3


@pytest.mark.parametrize("recurrence", ["none", "gru"])
@pytest.mark.parametrize("kind", ["mappo", "ippo"])
def test_the_same_reward_in_every_step_is_no_ones_merit(kind: str, recurrence: str) -> None:
    """The critics come to know all of it, though no observation tells the time."""
    config = small(
        **{
            "env.num_envs": 16,
            "learner.kind": kind,
            "learner.learning_rate": 1e-2,
            "learner.chunk_length": 10,
            "network.recurrence": recurrence,
            "network.hidden_sizes": [16, 16],
            "preferences.replay_steps": 2000,
        }
    )
    trainer = Trainer(config)
    mappo = mappo_of(trainer)
    for _ in range(60):
        rollout, _ = trainer.collector.collect(mappo.actor)
        ones = torch.ones(rollout.log_probs.shape)
        metrics = mappo.update(rollout, Rewards(team=ones[..., 0], local=ones), 1.0)
    assert metrics["value/explained_variance_team"] > 0.9
    assert metrics["value/explained_variance_local"] > 0.9


def test_timed_leaves_the_rest_as_it_is() -> None:
    env = finite(ScriptedEnv(LENGTHS))
    mappo = make_mappo(env.spec)
    rollout = collect(mappo, env)
    inputs = read_inputs(rollout, mappo.norm)
    told = timed(inputs, rollout, 6, in_state=True)
    assert torch.equal(told.state[..., :-1], inputs.state)
    assert torch.equal(told.end_state[..., :-1], inputs.end_state)
    assert told.obs is inputs.obs


@pytest.mark.parametrize("kind", [Mappo, Ippo])
@pytest.mark.parametrize("algorithm", ["sparse", "dense", "slf"])
def test_who_is_paid_at_the_end_has_only_the_episode(kind: type[Mappo], algorithm: str) -> None:
    """The task interrupts its episodes; what an episode pays when it ends says nothing of later."""
    name = {Mappo: "mappo", Ippo: "ippo"}[kind]
    env = SparseRewards(ScriptedEnv(LENGTHS))
    config = small(algorithm=algorithm, **{"learner.kind": name})
    norm = TeamNorm(env.spec, enabled=False)
    mappo = make_learner(env.spec, config, norm, generator(), CPU)
    assert isinstance(mappo, kind)
    with_unit_values(mappo)
    rollout = collect(mappo, env)
    assert rollout.truncated.any()
    told = mappo._critic_inputs(rollout)["team"]
    size = env.spec.state_size if kind is Mappo else env.spec.obs_size
    assert (told.state if kind is Mappo else told.obs).shape[-1] == size + (algorithm == "sparse")
    nothing = Rewards(team=torch.zeros(rollout.truncated.shape))
    stream = mappo._streams(rollout, nothing)["team"]
    last = mappo.critics["team"].value_norm.denormalise(stream.targets)[rollout.truncated]
    assert bool((last.abs() < 1e-6).all()) is (algorithm == "sparse")


def test_a_task_says_that_it_pays_at_the_end() -> None:
    modes: dict[str, dict[str, object]] = {
        "episodic": {},
        "outcome": {"reward_outcome": "time"},
        "every_k": {"reward_every": 2},
        "dense": {},
    }
    for mode, options in modes.items():
        env = SparseRewards(ScriptedEnv(LENGTHS, tells_facts=True), mode, **options)
        assert env.spec.paid_at_end is (mode in ("episodic", "outcome"))
