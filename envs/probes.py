"""Tiny tasks with a known optimum and a known random score, to test learning: `probe/...`.

Each public function makes one environment; its docstring states the optimal and the random return
of an episode. Random means uniform over the legal actions. Between them they need continuous
actions (`continuous_match`), actions of several parts (`composite`), coordination, credit for each
agent (`local_credit`), deaths (`dying`), illegal actions (`masked`), delayed effects (`keys`),
recurrent networks (`recall`) and the value of a future beyond the time limit (`time_limit`).

Axes are those of `envs.base`; T: steps of an episode, K: choices.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EnvError, EnvSpec, FloatArray
from envs.catalogue import PROBES
from envs.composite_probe import composite as composite
from envs.registry import Maker
from envs.simulated import Arrays, SimulatedEnv, View


def maker(member: str) -> Maker | None:
    """Return the maker of a probe."""
    return Maker(globals()[member]) if member in PROBES else None


Steps = npt.NDArray[np.int64]
Actions = npt.NDArray[Any]


def continuous_match(num_envs: int, *, max_steps: int = 8) -> SimulatedEnv:
    """Return two agents that must act out what they see: one number, and two numbers.

    Agent 0 sees u in [-1, 1]^2 and should act u[1]. Agent 1 sees w in [-1, 1]^3 and should act
    (w[2], -w[0]). A step pays minus the mean over agents of the mean squared error over
    dimensions. Optimum 0; always zero -T / 3 (-8/3); random -2 T / 3 (-16/3). The task ends
    after T steps.
    """
    spec = EnvSpec(
        name="probe/continuous_match",
        num_envs=num_envs,
        obs_sizes=(2, 3),
        state_size=5,
        action_kind="continuous",
        action_sizes=(1, 2),
        max_steps=at_least_one("continuous_match", "max_steps", max_steps),
        finite_horizon=True,
    )
    return SimulatedEnv(spec, _Matching(max_steps))


@dataclass(frozen=True)
class _Matching:
    """The functions of `continuous_match`."""

    max_steps: int

    @property
    def num_draws(self) -> int:
        """Five numbers per step, two of agent 0 and three of agent 1."""
        return (self.max_steps + 1) * 5

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, 5) numbers in [-1, 1] of new episodes."""
        numbers = (2.0 * draws - 1.0).astype(np.float32)
        return {"numbers": numbers.reshape(-1, self.max_steps + 1, 5)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return each agent's numbers, agent 0 padded by one zero."""
        numbers = now(arrays["numbers"], steps)
        obs = np.zeros((len(numbers), 2, 3), np.float32)
        obs[:, 0, :2] = numbers[:, :2]
        obs[:, 1] = numbers[:, 2:]
        return View(obs=obs, state=numbers)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return minus the mean squared error, agents weighing the same."""
        numbers = now(arrays["numbers"], steps).astype(np.float64)
        first = (actions[:, 0, 0] - numbers[:, 1]) ** 2
        targets = np.stack([numbers[:, 4], -numbers[:, 2]], axis=1)
        second = ((actions[:, 1] - targets) ** 2).mean(axis=1)
        return arrays, -(first + second) / 2.0, np.zeros(len(numbers), np.bool_)


def coordination(
    num_envs: int,
    *,
    num_cues: int = 3,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return two agents that see one cue and are paid 1 only if both name it in the same step.

    Optimum T (8); random T / K^2 (8/9). The task ends after T steps.
    """
    spec = discrete_spec("coordination", num_envs, max_steps, num_agents=2, size=num_cues)
    return SimulatedEnv(spec, _Cues(2, num_cues, max_steps, shared=True))


def local_credit(
    num_envs: int,
    *,
    num_agents: int = 4,
    num_cues: int = 2,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return agents that each see and name a cue of their own; the team is paid the mean.

    Optimum T (8); random T / K (4). The state is all cues. The task ends after T steps.
    """
    spec = discrete_spec("local_credit", num_envs, max_steps, num_agents=num_agents, size=num_cues)
    return SimulatedEnv(spec, _Cues(num_agents, num_cues, max_steps, shared=False))


def dying(
    num_envs: int,
    *,
    num_agents: int = 3,
    num_cues: int = 2,
    max_steps: int = 8,
) -> SimulatedEnv:
    """Return agents that each name their own cue until they die, each at a time of its own.

    Lifetimes are uniform over 1..T. A step pays the number of living agents that are right,
    divided by N; a dead agent sees zeros and its action does nothing. The task ends when all
    are dead. Optimum (T + 1) / 2 (4.5) in the mean and the mean lifetime in each episode;
    random (T + 1) / 2K (2.25).
    """
    spec = discrete_spec(
        "dying", num_envs, max_steps, num_agents=num_agents, size=num_cues, agents_die=True
    )
    return SimulatedEnv(spec, _Dying(num_agents, num_cues, max_steps))


@dataclass(frozen=True)
class _Cues:
    """The functions of `coordination` (one shared cue) and `local_credit` (one cue each)."""

    num_agents: int
    num_cues: int
    max_steps: int
    shared: bool

    @property
    def num_draws(self) -> int:
        """One cue per step, and one more to show at the end; for each agent unless shared."""
        return (self.max_steps + 1) * (1 if self.shared else self.num_agents)

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N) cues of new episodes."""
        cues = (draws * self.num_cues).astype(np.int64).reshape(len(draws), self.max_steps + 1, -1)
        return {"cues": np.repeat(cues, self.num_agents, axis=2) if self.shared else cues}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return each agent's cue; the state is the cues of all agents."""
        obs = one_hot(now(arrays["cues"], steps), self.num_cues)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy())

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the pay for naming the cues: all or nothing if shared, else the mean."""
        right = actions == now(arrays["cues"], steps)
        rewards = right.all(axis=1) if self.shared else right.mean(axis=1)
        return arrays, rewards.astype(np.float64), np.zeros(len(right), np.bool_)


@dataclass(frozen=True)
class _Dying:
    """The functions of `dying`."""

    num_agents: int
    num_cues: int
    max_steps: int

    @property
    def num_draws(self) -> int:
        """A cue per step and agent, one more step to show at the end, and the lifetimes."""
        return (self.max_steps + 2) * self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N) cues and the (C, N) lifetimes of new episodes."""
        lifetimes = 1 + (draws[:, : self.num_agents] * self.max_steps).astype(np.int64)
        cues = (draws[:, self.num_agents :] * self.num_cues).astype(np.int64)
        shape = (len(draws), self.max_steps + 1, self.num_agents)
        return {"cues": cues.reshape(shape), "lifetimes": lifetimes}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the cues of the living; zeros for the dead."""
        alive = steps[:, None] < arrays["lifetimes"]
        obs = one_hot(now(arrays["cues"], steps), self.num_cues) * alive[:, :, None]
        obs = obs.astype(np.float32)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy(), alive=alive)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the share of agents that live and are right; the end comes when all are dead."""
        alive = steps[:, None] < arrays["lifetimes"]
        right = (actions == now(arrays["cues"], steps)) & alive
        all_dead = steps + 1 >= arrays["lifetimes"].max(axis=1)
        return arrays, right.mean(axis=1), all_dead


def masked(num_envs: int, *, max_steps: int = 8) -> SimulatedEnv:
    """Return two agents of which each sees the pay of five actions, two of them illegal.

    Every step and agent one legal action pays 1, two pay 0 and the illegal ones promise 2, but
    raise `EnvError`. The team is paid the mean. Optimum T (8); random T / 3 (8/3). The task
    ends after T steps.
    """
    spec = discrete_spec("masked", num_envs, max_steps, num_agents=2, size=5, masks_actions=True)
    return SimulatedEnv(spec, _Masked(max_steps))


@dataclass(frozen=True)
class _Masked:
    """The functions of `masked`."""

    max_steps: int

    @property
    def num_draws(self) -> int:
        """A number per step, agent and action, whose order gives the pay."""
        return (self.max_steps + 1) * 2 * 5

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, T + 1, N, K) pay of new episodes: one 1, two 0, two (illegal) 2."""
        ranks = draws.reshape(-1, self.max_steps + 1, 2, 5).argsort(axis=3)
        return {"pay": np.array([1.0, 0.0, 0.0, 2.0, 2.0], np.float32)[ranks]}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the promised pay of every action, and which are legal."""
        pay = now(arrays["pay"], steps)
        return View(obs=pay, state=pay.reshape(len(pay), -1).copy(), action_mask=pay < 2.0)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the mean pay of the chosen actions."""
        pay = now(arrays["pay"], steps)
        chosen = np.take_along_axis(pay, actions[:, :, None], axis=2)[:, :, 0]
        return arrays, chosen.mean(axis=1, dtype=np.float64), np.zeros(len(pay), np.bool_)


def recall(
    num_envs: int,
    *,
    num_agents: int = 2,
    num_cues: int = 2,
    max_steps: int = 6,
    lights: bool = True,
) -> SimulatedEnv:
    """Return agents that see a cue in the first step and must name it in the last but one.

    The last step shows each agent a light if it was right, and the team is paid the share of
    lights. Optimum 1; random 1 / K (.5), which is also the best that feed-forward agents reach:
    between the cue and the light all they see is whether the question is asked. Without `lights`
    no agent is shown who was right, so that a model of the pay must be recurrent, too: added up
    over the steps, cues and answers say nothing about each other. The task ends after T >= 3 steps.
    """
    if max_steps < 3:
        raise EnvError(f"probe/recall: max_steps is {max_steps}; give at least 3")
    at_least_one("recall", "num_agents", num_agents)
    size = at_least_one("recall", "num_cues", num_cues) + 2
    spec = EnvSpec(
        name="probe/recall",
        num_envs=num_envs,
        obs_sizes=(size,) * num_agents,
        state_size=size * num_agents,
        action_kind="discrete",
        action_sizes=(num_cues,) * num_agents,
        max_steps=max_steps,
        finite_horizon=True,
    )
    return SimulatedEnv(spec, _Recall(num_agents, num_cues, max_steps, lights))


@dataclass(frozen=True)
class _Recall:
    """The functions of `recall`."""

    num_agents: int
    num_cues: int
    max_steps: int
    shows_lights: bool

    @property
    def num_draws(self) -> int:
        """A cue for each agent."""
        return self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, N) cues of new episodes and the lights, all off."""
        cues = (draws * self.num_cues).astype(np.int64)
        return {"cues": cues, "lights": np.zeros(cues.shape, np.bool_)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the cue at the start, then whether the question is asked and the light is on."""
        first, asked = steps == 0, steps == self.max_steps - 2
        cues = one_hot(arrays["cues"], self.num_cues) * first[:, None, None]
        lights = arrays["lights"] & self.shows_lights
        flags = np.stack(np.broadcast_arrays(asked[:, None], lights), axis=2)
        obs = np.concatenate((cues, flags), axis=2).astype(np.float32)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy())

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the lights that the answers turned on, which pay in the last step."""
        asked = (steps == self.max_steps - 2)[:, None]
        lights = np.where(asked, actions == arrays["cues"], arrays["lights"])
        paid = lights.mean(axis=1) * (steps == self.max_steps - 1)
        return arrays | {"lights": lights}, paid, np.zeros(len(steps), np.bool_)


def keys(
    num_envs: int, *, num_agents: int = 2, num_keys: int = 2, max_steps: int = 4
) -> SimulatedEnv:
    """Return agents that must take the right key in the first step and turn it in the last.

    The first step shows each agent which key fits (K); the action is the key it takes. In the last
    step each sees that it stands at its door, and action 0 turns the key. The team is then paid the
    share of agents whose door opens: one that has the right key and turns it. Nothing is seen of
    what was done; in between, all see zeros and actions do nothing. Optimum 1; random 1 / K^2
    (.25); with turned keys that were taken at random 1 / K (.5). The task ends after T >= 2 steps.
    """
    if max_steps < 2:
        raise EnvError(f"probe/keys: max_steps is {max_steps}; give at least 2")
    at_least_one("keys", "num_agents", num_agents)
    size = at_least_one("keys", "num_keys", num_keys) + 1
    spec = EnvSpec(
        name="probe/keys",
        num_envs=num_envs,
        obs_sizes=(size,) * num_agents,
        state_size=size * num_agents,
        action_kind="discrete",
        action_sizes=(num_keys,) * num_agents,
        max_steps=max_steps,
        finite_horizon=True,
    )
    return SimulatedEnv(spec, _Keys(num_agents, num_keys, max_steps))


@dataclass(frozen=True)
class _Keys:
    """The functions of `keys`."""

    num_agents: int
    num_keys: int
    max_steps: int

    @property
    def num_draws(self) -> int:
        """A key for each agent."""
        return self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return the (C, N) keys that fit, and that no agent has the right one."""
        fits = (draws * self.num_keys).astype(np.int64)
        return {"fits": fits, "has": np.zeros(fits.shape, np.bool_)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the keys that fit in the first step, and the door in the last."""
        first, last = steps == 0, steps == self.max_steps - 1
        shown = one_hot(arrays["fits"], self.num_keys) * first[:, None, None]
        door = np.broadcast_to(last[:, None, None], (*arrays["fits"].shape, 1))
        obs = np.concatenate((shown, door), axis=2).astype(np.float32)
        return View(obs=obs, state=obs.reshape(len(obs), -1).copy())

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the share of doors that open in the last step."""
        has = np.where((steps == 0)[:, None], actions == arrays["fits"], arrays["has"])
        paid = (has & (actions == 0)).mean(axis=1) * (steps == self.max_steps - 1)
        return arrays | {"has": has}, paid, np.zeros(len(steps), np.bool_)


def time_limit(
    num_envs: int,
    *,
    max_steps: int = 10,
    finite_horizon: bool = False,
) -> SimulatedEnv:
    """Return one agent that is paid 1 in every step it chooses to stand in state 1, without end.

    Action 1 leads to state 1 and pays 1; action 0 leads to state 0 and pays 0. Optimum T (10)
    per episode; random T / 2 (5). Deterministic. The limit of T steps interrupts, so with
    reward mode "dense" and discount gamma the value of either state is 1 / (1 - gamma): 100 at
    .99. With `finite_horizon` the limit ends the task and the value of the start is the sum of
    gamma^t over t < T: 9.56 at .99.
    """
    spec = EnvSpec(
        name="probe/time_limit",
        num_envs=num_envs,
        obs_sizes=(2,),
        state_size=2,
        action_kind="discrete",
        action_sizes=(2,),
        max_steps=at_least_one("time_limit", "max_steps", max_steps),
        finite_horizon=finite_horizon,
    )
    return SimulatedEnv(spec, _Standing())


@dataclass(frozen=True)
class _Standing:
    """The functions of `time_limit`."""

    num_draws: int = 0

    def begin(self, draws: FloatArray) -> Arrays:
        """Return every environment in state 0."""
        return {"place": np.zeros(len(draws), np.int64)}

    def view(self, arrays: Arrays, steps: Steps) -> View:
        """Return the state as one-hot; the agent sees it all."""
        state = one_hot(arrays["place"], 2)
        return View(obs=state[:, None].copy(), state=state)

    def advance(
        self, arrays: Arrays, steps: Steps, actions: Actions
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the chosen state and its pay."""
        place = actions[:, 0].astype(np.int64)
        return {"place": place}, place.astype(np.float64), np.zeros(len(place), np.bool_)


def discrete_spec(
    name: str,
    num_envs: int,
    max_steps: int,
    *,
    num_agents: int,
    size: int,
    masks_actions: bool = False,
    agents_die: bool = False,
) -> EnvSpec:
    """Return the constants of a task whose agents see `size` features and have `size` choices.

    The state is all observations side by side.
    """
    at_least_one(name, "num_agents", num_agents)
    at_least_one(name, "num_cues", size)
    return EnvSpec(
        name=f"probe/{name}",
        num_envs=num_envs,
        obs_sizes=(size,) * num_agents,
        state_size=size * num_agents,
        action_kind="discrete",
        action_sizes=(size,) * num_agents,
        max_steps=at_least_one(name, "max_steps", max_steps),
        finite_horizon=True,
        masks_actions=masks_actions,
        agents_die=agents_die,
    )


def at_least_one(env: str, option: str, value: int) -> int:
    """Return `value` if it is at least 1."""
    if value < 1:
        raise EnvError(f"probe/{env}: {option} is {value}; give at least 1")
    return value


def now(sequence: npt.NDArray[Any], steps: Steps) -> npt.NDArray[Any]:
    """Return what a (C, T + 1, ...) sequence shows each environment after its steps."""
    return sequence[np.arange(len(sequence)), steps]


def one_hot(choices: npt.NDArray[np.int64], size: int) -> FloatArray:
    """Return float32 rows of the identity."""
    return np.eye(size, dtype=np.float32)[choices]
