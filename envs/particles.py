"""Point masses on a plane that should reach landmarks: `particles/nav_N`, `particles/spread_N`.

Dynamics and constants are those of the multi-agent particle environment (Lowe et al.,
arXiv 1706.02275): time step .1, velocity damping .25, force 5, unit mass; five actions
(none, +x, -x, +y, -y). There is no wall. An episode lasts 25 steps and its end belongs to the
task: it terminates.

Axes are those of `envs.base`, with N landmarks beside N agents; the last axis of a place has 2
coordinates. Frames show agents as discs and landmarks as rings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import BoolArray, EntityList, EnvError, EnvSpec, Fact, FloatArray
from envs.frames import FAINT, TARGET, WALL, Circle, Frame, Point, Segment, agent_colour
from envs.registry import Maker
from envs.simulated import Arrays, SimulatedEnv, View

MAX_STEPS = 25
TIME_STEP = 0.1
DAMPING = 0.25
FORCE = 5.0
FORCES = FORCE * np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]], dtype=np.float64)
"""(5, 2) the force of each action."""
AGENT_RADIUS = 0.15
CONTACT_STIFFNESS = 100.0
CONTACT_MARGIN = 1e-3
NEAR = 0.1
"""A particle no farther away has reached a landmark."""
NAV_FACTS = (
    Fact(
        name="mean_distance",
        meaning="mean distance of the agents to their landmarks",
        higher_is_better=False,
    ),
    Fact(
        name="farthest",
        meaning="distance of the agent that is farthest from its landmark",
        higher_is_better=False,
    ),
    Fact(name="arrived", meaning="agents within 0.1 of their landmark", higher_is_better=True),
)
SPREAD_FACTS = (
    Fact(
        name="mean_distance",
        meaning="mean distance of the landmarks to the nearest agent",
        higher_is_better=False,
    ),
    Fact(name="covered", meaning="landmarks with an agent within 0.1", higher_is_better=True),
    Fact(name="touching", meaning="pairs of agents that touch", higher_is_better=False),
)


def maker(member: str) -> Maker | None:
    """Return the maker of a particle task, e.g. `nav_6`."""
    task, _, count = member.rpartition("_")
    calls = {"nav": nav, "spread": spread}
    if task not in calls or not count.isdecimal():
        return None
    return Maker(calls[task], {"num_agents": int(count)})


def nav(num_envs: int, *, num_agents: int = 6) -> SimulatedEnv:
    """Return N particles that each see and must reach their own landmark.

    An agent observes its velocity, its position and the way to its landmark (6 features); the
    state is all of these. The shared reward of a step is minus the mean distance to the own
    landmarks. Measured over 2,000 episodes, any N: greedy pursuit -6.4; standing still -26.1;
    random -28.6; every agent drifting one way -59.6.
    """
    task = _Navigation(num_agents)
    return SimulatedEnv(_spec(f"nav_{num_agents}", num_envs, num_agents, 6, NAV_FACTS), task)


def spread(num_envs: int, *, num_agents: int = 3) -> SimulatedEnv:
    """Return N particles that must cover N landmarks without touching each other.

    An agent observes its velocity, its position, the way to every landmark and to every other
    agent; the state is all of these. The shared reward of a step is half of minus the sum over
    landmarks of the distance to the nearest agent, and half of minus the mean number of agents
    each agent touches: simple_spread with its local ratio of .5, averaged over the agents.
    Measured over 2,000 episodes, N = 3: greedy pursuit of the best assignment -6.2; random
    -25.8.
    """
    task = _Spread(num_agents)
    obs_size = 4 + 2 * num_agents + 2 * (num_agents - 1)
    spec = _spec(f"spread_{num_agents}", num_envs, num_agents, obs_size, SPREAD_FACTS)
    landmarks = EntityList(name="landmarks", first=4, count=num_agents, size=2)
    others = EntityList(name="others", first=4 + 2 * num_agents, count=num_agents - 1, size=2)
    lists = (landmarks, others) if others.count else (landmarks,)
    return SimulatedEnv(replace(spec, entities=lists), task)


def _spec(
    name: str, num_envs: int, num_agents: int, obs_size: int, facts: tuple[Fact, ...]
) -> EnvSpec:
    """Return the constants of a particle task."""
    if num_agents < 1:
        raise EnvError(f"particles/{name}: num_agents is {num_agents}; ask for at least 1")
    return EnvSpec(
        name=f"particles/{name}",
        num_envs=num_envs,
        obs_sizes=(obs_size,) * num_agents,
        state_size=obs_size * num_agents,
        action_kind="discrete",
        action_sizes=(len(FORCES),) * num_agents,
        max_steps=MAX_STEPS,
        finite_horizon=True,
        facts=facts,
    )


@dataclass(frozen=True)
class _Navigation:
    """The functions of `nav`."""

    num_agents: int

    @property
    def num_draws(self) -> int:
        """Two coordinates for each agent and each landmark."""
        return 4 * self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return agents at rest and landmarks, both uniform in [-1, 1]^2."""
        return _scattered(draws, self.num_agents)

    def view(self, arrays: Arrays, steps: npt.NDArray[np.int64]) -> View:
        """Return velocity, position and the way to the own landmark, per agent."""
        way = arrays["landmarks"] - arrays["positions"]
        return _view(arrays["velocities"], arrays["positions"], way)

    def frame(self, arrays: Arrays, index: int) -> Frame:
        """Return agents, drawn small as they do not touch, on their way to their rings."""
        places = arrays["positions"][index], arrays["landmarks"][index]
        own = [(agent, agent) for agent in range(self.num_agents)]
        return particle_frame(*places, AGENT_RADIUS / 2.0, TIME_STEP, ways=own)

    def advance(
        self, arrays: Arrays, steps: npt.NDArray[np.int64], actions: npt.NDArray[Any]
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the moved agents and minus their mean distance to their landmarks."""
        positions, velocities = moved(arrays["positions"], arrays["velocities"], FORCES[actions])
        rewards = -_length(arrays["landmarks"] - positions).mean(axis=1)
        after = {**arrays, "positions": positions, "velocities": velocities}
        return after, rewards, np.zeros(len(rewards), np.bool_)

    def facts(self, arrays: Arrays) -> FloatArray:
        """Return `NAV_FACTS` of where the agents are now."""
        distances = _length(arrays["landmarks"] - arrays["positions"])
        arrived = (distances <= NEAR).sum(axis=1)
        return np.stack([distances.mean(axis=1), distances.max(axis=1), arrived], axis=1)


@dataclass(frozen=True)
class _Spread:
    """The functions of `spread`."""

    num_agents: int

    @property
    def num_draws(self) -> int:
        """Two coordinates for each agent and each landmark."""
        return 4 * self.num_agents

    def begin(self, draws: FloatArray) -> Arrays:
        """Return agents at rest and landmarks, both uniform in [-1, 1]^2."""
        return _scattered(draws, self.num_agents)

    def view(self, arrays: Arrays, steps: npt.NDArray[np.int64]) -> View:
        """Return velocity, position and the ways to all landmarks and other agents."""
        positions = arrays["positions"]
        count, agents = positions.shape[:2]
        to_landmarks = arrays["landmarks"][:, None] - positions[:, :, None]
        to_agents = positions[:, None] - positions[:, :, None]
        others = to_agents[:, ~np.eye(agents, dtype=np.bool_)]
        return _view(
            arrays["velocities"],
            positions,
            to_landmarks.reshape(count, agents, 2 * agents),
            others.reshape(count, agents, 2 * (agents - 1)),
        )

    def frame(self, arrays: Arrays, index: int) -> Frame:
        """Return agents among rings, which belong to no agent."""
        places = arrays["positions"][index], arrays["landmarks"][index]
        return particle_frame(*places, AGENT_RADIUS, TIME_STEP)

    def advance(
        self, arrays: Arrays, steps: npt.NDArray[np.int64], actions: npt.NDArray[Any]
    ) -> tuple[Arrays, FloatArray, BoolArray]:
        """Return the moved agents and their reward for covering landmarks and keeping apart."""
        positions = arrays["positions"]
        positions, velocities = moved(
            positions, arrays["velocities"], FORCES[actions] + contact_forces(positions)
        )
        uncovered = _uncovered(arrays["landmarks"], positions).sum(axis=1)
        touching = _touching(positions)
        rewards = -0.5 * uncovered - 0.5 * touching / self.num_agents
        after = {**arrays, "positions": positions, "velocities": velocities}
        return after, rewards, np.zeros(len(rewards), np.bool_)

    def facts(self, arrays: Arrays) -> FloatArray:
        """Return `SPREAD_FACTS` of where the agents are now."""
        uncovered = _uncovered(arrays["landmarks"], arrays["positions"])
        covered = (uncovered <= NEAR).sum(axis=1)
        pairs = _touching(arrays["positions"]) / 2
        return np.stack([uncovered.mean(axis=1), covered, pairs], axis=1)


def moved(
    positions: FloatArray, velocities: FloatArray, forces: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the positions and velocities one time step later."""
    velocities = velocities * (1.0 - DAMPING) + forces * TIME_STEP
    return positions + velocities * TIME_STEP, velocities


def contact_forces(positions: FloatArray) -> FloatArray:
    """Return (C, N, 2) forces that push overlapping discs apart: stiffness times soft overlap."""
    from_others = positions[:, :, None] - positions[:, None]
    distances = _length(from_others)
    gaps = (distances - 2 * AGENT_RADIUS) / CONTACT_MARGIN
    overlaps = CONTACT_MARGIN * np.logaddexp(0.0, -gaps)
    # An agent's way to itself is zero, so the floor only avoids 0 / 0.
    directions = from_others / np.maximum(distances, 1e-9)[..., None]
    forces: FloatArray = CONTACT_STIFFNESS * (directions * overlaps[..., None]).sum(axis=2)
    return forces


def _uncovered(landmarks: FloatArray, positions: FloatArray) -> FloatArray:
    """Return (C, N) distances of the landmarks to the nearest agent."""
    nearest: FloatArray = _length(landmarks[:, None] - positions[:, :, None]).min(axis=1)
    return nearest


def _touching(positions: FloatArray) -> npt.NDArray[np.int64]:
    """Return (C,) how many agents each agent touches, in sum: every pair counts twice."""
    apart = _length(positions[:, None] - positions[:, :, None])
    counts: npt.NDArray[np.int64] = (apart < 2 * AGENT_RADIUS).sum(axis=(1, 2)) - positions.shape[1]
    return counts


def _scattered(draws: FloatArray, num_agents: int) -> Arrays:
    """Return agents at rest and landmarks, uniform in [-1, 1]^2."""
    places = (2.0 * draws - 1.0).reshape(len(draws), 2, num_agents, 2)
    return {
        "positions": places[:, 0],
        "velocities": np.zeros_like(places[:, 0]),
        "landmarks": places[:, 1],
    }


def _view(*features: FloatArray) -> View:
    """Return the agents' features side by side, and all agents' features as the state."""
    obs = np.concatenate(features, axis=2, dtype=np.float32, casting="same_kind")
    return View(obs=obs, state=obs.reshape(len(obs), -1))


def _length(vectors: FloatArray) -> FloatArray:
    """Return the Euclidean length along the last axis."""
    lengths: FloatArray = np.sqrt((vectors * vectors).sum(axis=-1))
    return lengths


_SQUARE = ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0))
"""Where agents and landmarks start."""
_MARGIN = 0.15


def particle_frame(
    positions: FloatArray,
    landmarks: FloatArray,
    radius: float,
    seconds_per_step: float,
    *,
    ways: Sequence[tuple[int, int]] = (),
) -> Frame:
    """Return (N, 2) agents and (M, 2) landmarks; `ways` are agents, each tied to its own landmark.

    The view is the square they start in with a margin, and grows with agents that leave it.
    """
    places, goals = _points(positions), _points(landmarks)
    colours = [agent_colour(agent) for agent in range(len(places))]
    of_goals = [WALL if ways else TARGET] * len(goals)
    for agent, goal in ways:
        of_goals[goal] = colours[agent]
    corners = zip(_SQUARE, (*_SQUARE[1:], _SQUARE[0]), strict=True)
    border = [Segment(start=start, end=end, colour=FAINT) for start, end in corners]
    lines = [
        Segment(start=places[agent], end=goals[goal], colour=colours[agent]) for agent, goal in ways
    ]
    rings = [
        Circle(centre=goal, radius=radius, colour=colour, filled=False)
        for goal, colour in zip(goals, of_goals, strict=True)
    ]
    agents = [
        Circle(centre=place, radius=radius, colour=colour)
        for place, colour in zip(places, colours, strict=True)
    ]
    half = max(1.0, float(np.abs(positions).max())) + _MARGIN
    return Frame(
        shapes=(*border, *lines, *rings, *agents),
        view=(-half, -half, half, half),
        anchors=tuple(places),
        seconds_per_step=seconds_per_step,
    )


def _points(array: FloatArray) -> list[Point]:
    """Return the rows of an (N, 2) array as points."""
    return [(float(x), float(y)) for x, y in array]
