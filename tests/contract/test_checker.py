"""`check_env` finds each kind of fault in an environment that is broken in one place."""

import re
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from envs import (
    EnvSpec,
    EnvStep,
    Fact,
    HasHiddenRewards,
    SimulatedEnv,
    VecEnv,
    View,
    check_env,
    make_env,
)
from envs.rng import random_actions


class Broken:
    """A sound environment whose answers pass through one fault."""

    def __init__(
        self,
        name: str = "probe/local_credit",
        *,
        fault: Callable[[EnvStep, int], EnvStep] = lambda step, t: step,
        spec: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.env = make_env(name, 3, **options)
        self.fault = fault
        self.changes = spec or {}
        self.t = 0

    @property
    def spec(self) -> EnvSpec:
        return replace(self.env.spec, **self.changes)

    def reset(self, seed: int) -> EnvStep:
        self.t = 0
        return self.fault(self.env.reset(seed), 0)

    def step(self, actions: np.ndarray) -> EnvStep:
        self.t += 1
        return self.fault(self.env.step(actions), self.t)

    def hidden_rewards(self) -> np.ndarray:
        assert isinstance(self.env, HasHiddenRewards)
        return self.env.hidden_rewards()

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "t": self.t}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state["env"])
        self.t = state["t"]


def test_agents_without_a_name_each() -> None:
    env = Broken(spec={"agent_names": ("fox",)})
    assert "spec.agent_names has 1 names for" in the_problem(env)


def the_problem(env: VecEnv) -> str:
    """Return the one sentence that the checker has to say."""
    problems = check_env(env, steps=40)
    assert len(problems) == 1, problems
    return problems[0]


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


def test_the_wrapper_alone_is_sound() -> None:
    assert check_env(Broken()) == []
    assert check_env(Broken("probe/masked")) == []
    assert check_env(Broken("probe/dying")) == []


def test_progress_is_told_and_slow_steps_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float]] = []
    env = Broken("probe/dying")
    assert check_env(env, progress=lambda doing, share: told.append((doing, share))) == []
    assert [doing for doing, _ in told] == [
        "playing random legal actions",
        "replaying the same seed",
        "repeating an episode",
        "trying another seed",
        "trying other actions",
        "saving and loading",
    ]
    assert [share for _, share in told] == pytest.approx([k / 6 for k in range(6)])
    # The last check plays 100 steps of 200, or 12 of 25, then 200 or 25 again.
    counts = [env.t]
    monkeypatch.setattr("envs.checker._SECONDS", 0.0)
    assert check_env(env) == []
    counts.append(env.t)
    assert counts == [300, 37]


def test_a_long_run_is_not_kept_in_memory() -> None:
    pictures = [np.zeros((3, 2, 40_000), np.float32) for _ in range(2)]  # a megabyte each

    def shown(step: EnvStep, t: int) -> EnvStep:
        wide = pictures[t % 2]
        wide[...] = t
        if (step.terminated | step.truncated).any():
            return replace(step, obs=wide, final_obs=wide - 1)
        return replace(step, obs=wide, final_obs=wide.copy())

    env = Broken(fault=shown, spec={"obs_sizes": (40_000,) * 2})
    tracemalloc.start()
    check_env(env, steps=100)
    assert tracemalloc.get_traced_memory()[1] < 20e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("field", "fault", "words"),
    [
        ("obs", lambda x: x[:, :, :1], r"obs is float32 of shape \(3, 4, 1\).*\(3, 4, 2\)"),
        ("obs", lambda x: x.astype(np.float64), "obs is float64.*promises float32"),
        ("state", lambda x: changed(x, (0, 1), np.nan), r"state\[0, 1\] is nan"),
        ("rewards", lambda x: x[:, None], r"rewards is float64 of shape \(3, 1\)"),
        ("rewards", lambda x: x.tolist(), "rewards is a list; return a numpy float array"),
        ("terminated", lambda x: x.astype(np.float32), "terminated is float32"),
        ("truncated", lambda x: x.astype(int), "truncated is int64"),
        ("final_state", lambda x: x[:1], r"final_state is float32 of shape \(1, 8\)"),
    ],
)
def test_wrong_arrays(field: str, fault: Callable[[Any], Any], words: str) -> None:
    def break_step(step: EnvStep, t: int) -> EnvStep:
        return replace(step, **{field: fault(getattr(step, field))}) if t == 2 else step

    problem = the_problem(Broken(fault=break_step))
    assert re.search(words, problem), problem
    assert "step 1" in problem
    assert problem.startswith("probe/local_credit: ")


def test_missing_member() -> None:
    class NoState:
        spec = make_env("probe/masked", 1).spec

        def reset(self, seed: int) -> None: ...

        def step(self, actions: np.ndarray) -> None: ...

    (problem,) = check_env(NoState())  # type: ignore[arg-type]  # the fault tested
    assert "has no state_dict, load_state_dict" in problem


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"action_kind": "both"}, "say 'discrete', 'continuous' or 'composite'"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"obs_sizes": (2, 0, 2, 2)}, "one size of at least 1 per agent"),
        ({"action_sizes": (2, 2)}, "4 obs_sizes and 2 action_sizes"),
        ({"facts": (Fact(name="a b", meaning=""),)}, "an identifier of its own"),
    ],
)
def test_impossible_spec(spec: dict[str, Any], words: str) -> None:
    assert words in the_problem(Broken(spec=spec))


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("probe/masked", {"masks_actions": False}, "action_mask is given, but spec.masks_actions"),
        ("probe/local_credit", {"masks_actions": True}, "action_mask is missing"),
        ("probe/dying", {"agents_die": False}, "alive is given"),
        ("probe/dying", {"facts": (Fact(name="won", meaning="won"),)}, "facts is missing"),
        ("probe/local_credit", {"obs_sizes": (2, 1, 2, 2)}, "agent 1 observes 1 features"),
        ("probe/local_credit", {"max_steps": 5}, "goes on after 5 steps"),
        ("probe/local_credit", {"finite_horizon": False}, "spec.finite_horizon is False"),
        ("probe/time_limit", {"finite_horizon": True}, "truncated at max_steps"),
    ],
)
def test_spec_that_the_steps_contradict(name: str, spec: dict[str, Any], words: str) -> None:
    problems = check_env(Broken(name, spec=spec), steps=40)
    assert any(words in problem for problem in problems), problems


def test_padding_of_the_mask() -> None:
    problem = the_problem(
        Broken(
            "probe/masked",
            spec={"action_sizes": (5, 4)},
            fault=lambda step, t: replace(step, action_mask=np.ones((3, 2, 5), bool)),
        )
    )
    assert "may choose action 4, but has 4 choices" in problem


def test_no_legal_action_and_nobody_alive() -> None:
    def stuck(step: EnvStep, t: int) -> EnvStep:
        assert step.action_mask is not None
        return (
            replace(step, action_mask=changed(step.action_mask, (1, 0), False)) if t == 3 else step
        )

    assert "copy 1, agent 0 has no legal action" in the_problem(Broken("probe/masked", fault=stuck))

    def lifeless(step: EnvStep, t: int) -> EnvStep:
        assert step.alive is not None
        nobody = changed(step.alive, 2, False)
        return replace(step, alive=nobody, final_alive=nobody) if t == 3 else step

    assert "copy 2 has no living agent" in the_problem(Broken("probe/dying", fault=lifeless))


def test_final_alive_of_another_time_or_shape() -> None:
    def elsewhere(step: EnvStep, t: int) -> EnvStep:
        assert step.final_alive is not None
        return replace(step, final_alive=~step.final_alive) if t == 0 else step

    words = "reset: final_alive of copy 0 differs from alive, but its episode goes on"
    assert words in the_problem(Broken("probe/dying", fault=elsewhere))

    def short(step: EnvStep, t: int) -> EnvStep:
        assert step.final_alive is not None
        return replace(step, final_alive=step.final_alive[:, :1])

    assert "final_alive is bool of shape (3, 1)" in the_problem(Broken("probe/dying", fault=short))

    def immortal(step: EnvStep, t: int) -> EnvStep:
        return replace(step, final_alive=np.ones((3, 4), bool))

    problem = the_problem(Broken(fault=immortal))
    assert "final_alive is given, but spec.agents_die is False" in problem


def test_deaths_that_an_interruption_hides_are_a_warning() -> None:
    def untold(step: EnvStep, t: int) -> EnvStep:
        return replace(step, final_alive=None)

    assert check_env(Broken("probe/dying", fault=untold)) == []  # it ends when all are dead
    env = Broken("fleet/hopper_2", fault=untold, max_steps=20)
    problem = the_problem(env)
    assert problem.startswith("warning: ")
    assert "agents die and episodes are truncated, but final_alive is missing" in problem


def test_terminated_and_truncated_at_once() -> None:
    problem = the_problem(Broken(fault=lambda step, t: replace(step, truncated=step.terminated)))
    assert "terminated and truncated" in problem


def test_reset_that_pays() -> None:
    problem = the_problem(
        Broken(
            reward_mode="dense",
            fault=lambda step, t: replace(step, rewards=step.rewards + np.float32(t == 0)),
        )
    )
    assert "nothing was done, return zeros" in problem


def test_final_arrays_of_the_next_episode_or_of_another_time() -> None:
    problem = the_problem(Broken(fault=lambda step, t: replace(step, final_obs=step.obs)))
    assert "before the reset" in problem

    def stale(step: EnvStep, t: int) -> EnvStep:
        if t != 3:
            return step
        return replace(step, final_state=1 - step.state)

    assert "final_state of copy 0 differs from state" in the_problem(Broken(fault=stale))


class Matrix:
    """One step in which two agents are paid for choosing the same; all that is seen is a one."""

    num_draws = 1

    def begin(self, draws: np.ndarray) -> dict[str, np.ndarray]:
        return {"chosen": np.zeros(len(draws), np.int64)}

    def view(self, arrays: dict[str, np.ndarray], steps: np.ndarray) -> View:
        count = len(steps)
        return View(obs=np.ones((count, 2, 1), np.float32), state=np.ones((count, 1), np.float32))

    def advance(
        self, arrays: dict[str, np.ndarray], steps: np.ndarray, actions: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        same = actions[:, 0] == actions[:, 1]
        return arrays, same.astype(float), np.ones(len(steps), bool)


def test_nothing_to_see_is_no_fault() -> None:
    spec = EnvSpec(
        name="matrix",
        num_envs=3,
        obs_sizes=(1, 1),
        state_size=1,
        action_kind="discrete",
        action_sizes=(2, 2),
        max_steps=1,
        finite_horizon=True,
    )
    problems = check_env(SimulatedEnv(spec, Matrix()), steps=40)
    assert all(problem.startswith("warning: ") for problem in problems), problems
    assert any("obs is the same in all 40 steps" in problem for problem in problems)


def test_reward_before_the_end_of_a_sparse_task() -> None:
    def leak(step: EnvStep, t: int) -> EnvStep:
        return replace(step, rewards=step.rewards + np.float32(t == 3))

    assert "pay zero until the end" in the_problem(Broken(fault=leak))


def test_hidden_rewards_of_the_wrong_shape() -> None:
    env = Broken()
    env.hidden_rewards = lambda: np.zeros(2)  # type: ignore[method-assign]
    assert "hidden_rewards() has shape (2,)" in the_problem(env)


def test_randomness_outside_the_seed() -> None:
    rng = np.random.default_rng()

    def noisy(step: EnvStep, t: int) -> EnvStep:
        state = step.state if t == 0 else step.state + rng.random(8, dtype=np.float32)
        return replace(step, state=state, final_state=state)

    problems = check_env(Broken(fault=noisy), steps=40)
    assert any("same seed and actions gave other state" in problem for problem in problems)


def test_reset_that_does_not_start_over() -> None:
    class Continues(Broken):
        resets = 0

        def reset(self, seed: int) -> EnvStep:
            self.resets += 1
            return super().reset(seed + self.resets)

    problems = check_env(Continues(), steps=40)
    assert any("a second reset(0) gave other obs" in problem for problem in problems)


def test_seed_that_is_ignored_is_a_warning() -> None:
    class Ignores(Broken):
        def reset(self, seed: int) -> EnvStep:
            return super().reset(0)

    problem = the_problem(Ignores())
    assert problem.startswith("warning: ")
    assert "seeds 0 and 1 gave the same episodes" in problem


def test_environments_that_share_a_seed_are_a_warning() -> None:
    class Alike(Broken):
        def reset(self, seed: int) -> EnvStep:
            super().reset(seed)
            state = self.env.state_dict()
            inner = state["inner"]
            inner["seeds"][:] = inner["seeds"][0]
            cues = inner["arrays"]["cues"]
            cues[:] = cues[0]
            self.env.load_state_dict(state)
            first = self.env.reset(seed)
            self.env.load_state_dict(state)
            same = {
                field: np.repeat(getattr(first, field)[:1], 3, axis=0)
                for field in ("obs", "state", "final_obs", "final_state")
            }
            return replace(first, **same)

    assert "all 3 environments do the same" in the_problem(Alike())


class Forgets(Broken):
    """Saves no count of its own, though its state depends on it."""

    def state_dict(self) -> dict[str, Any]:
        return {"env": self.env.state_dict(), "t": 0}


def test_state_that_forgets() -> None:
    def counted(step: EnvStep, t: int) -> EnvStep:
        state = step.state + np.float32(t)
        return replace(step, state=state, final_state=step.final_state + np.float32(t))

    assert "after load_state_dict gave other state" in the_problem(Forgets(fault=counted))


def test_state_that_a_file_cannot_hold() -> None:
    class HoldsAGenerator(Broken):
        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "rng": np.random.default_rng(0)}

    assert "state_dict()['rng'] is a Generator" in the_problem(HoldsAGenerator())


def test_actions_written_to_or_kept() -> None:
    class WritesActions(Broken):
        def step(self, actions: np.ndarray) -> EnvStep:
            step = super().step(actions)
            actions[0, 0] = 1 - actions[0, 0]
            return step

    assert "wrote into the actions" in the_problem(WritesActions())

    class KeepsActions(Broken):
        """Shows the actions of the previous step, which the caller may have overwritten."""

        kept = np.zeros((3, 4), int)

        def reset(self, seed: int) -> EnvStep:
            self.kept = np.zeros((3, 4), int)
            return super().reset(seed)

        def step(self, actions: np.ndarray) -> EnvStep:
            step = super().step(actions)
            shown = np.float32(self.kept.sum()) + np.zeros_like(step.state)
            self.kept = actions
            return replace(step, state=step.state + shown, final_state=step.final_state + shown)

    problems = check_env(KeepsActions(), steps=40)
    assert any("keep no reference to the actions" in problem for problem in problems)


def test_arrays_may_be_reused_by_the_next_call() -> None:
    class Reuses(Broken):
        buffer = np.zeros((3, 4, 2), np.float32)

        def step(self, actions: np.ndarray) -> EnvStep:
            step = super().step(actions)
            self.buffer[:] = step.obs
            return replace(step, obs=self.buffer)

    assert check_env(Reuses(), steps=40) == []


def test_exception_of_the_environment() -> None:
    def fails(step: EnvStep, t: int) -> EnvStep:
        if t == 3:
            raise KeyError("velocity")
        return step

    problem = the_problem(Broken(fault=fails))
    assert "playing random legal actions raised KeyError: 'velocity'" in problem


def test_random_actions_are_legal_and_padded() -> None:
    rng = np.random.default_rng(0)
    spec = make_env("probe/masked", 1_000).spec
    mask = np.zeros((1_000, 2, 5), bool)
    mask[:, 0, [1, 3]] = mask[:, 1, 4] = True
    actions = random_actions(spec, rng, mask)
    # Agent 0 draws 1 or 3 evenly: mean 2, standard error 1 / sqrt(1000) = .03.
    assert set(actions[:, 0]) == {1, 3}
    assert abs(actions[:, 0].mean() - 2.0) < 0.15
    assert (actions[:, 1] == 4).all()
    continuous = random_actions(make_env("probe/continuous_match", 50).spec, rng, None)
    assert (continuous[:, 0, 1] == 0).all()
    assert continuous[:, 1].min() < 0 < continuous.max() <= 1


def test_actions_that_change_nothing_are_a_warning() -> None:
    class Deaf(Broken):
        def step(self, actions: np.ndarray) -> EnvStep:
            return super().step(np.zeros_like(actions))

    problem = the_problem(Deaf())
    assert problem.startswith("warning: ")
    assert "other actions changed nothing in 40 steps" in problem
