"""JaxMARL's other cooperative tasks (arXiv 2311.10090): Overcooked, particles, Hanabi and others.

Needs the extra ``smax``, which installs JaxMARL; the ``mabrax_`` robots need the package brax too,
which no longer has a maintainer. Importing this module imports JAX. Axes are those of `envs.base`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import ActionKind, EnvError, EnvSpec, Fact
from envs.catalogue import MABRAX_ROBOTS, MPE_SCENARIOS, OVERCOOKED_LAYOUTS
from envs.frames import Frame
from envs.grid_artist import coins_frame, kitchen_frame
from envs.jaxmarl.batched import JaxEnv, View, check_sizes, typed
from envs.jaxmarl.quiet import import_quietly
from envs.particles import particle_frame
from envs.registry import Maker

Tell = Callable[[jax.Array, Any, jax.Array], jax.Array]
"""(F,) facts before a step, the source's state and the reward after it -> the facts after it."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """How a class of JaxMARL is made, and what it means."""

    source: str
    """Name of the class in `jaxmarl.environments`."""
    options: dict[str, Any] = field(default_factory=dict)
    """What the name of the environment fixes."""
    max_steps: int
    """Usual longest episode."""
    limit: dict[str, int] = field(default_factory=dict)
    """The source's option for it, and what is added so that the limit is ours and not its own."""
    ends: bool
    """Whether the task ends by itself; if not, only time ends it."""
    finite_horizon: bool = False
    """Whether a task that is not over in time has failed, unless the user says otherwise."""
    facts: tuple[Fact, ...] = ()
    tell: Tell | None = None
    """How facts follow from a step; they begin at 0."""
    draw: Callable[[Any, Any], Frame] | None = None
    """The source and a state of it -> what it looks like; None: its observations are shown."""


SOUPS = Fact(name="soups", meaning="soups served", higher_is_better=True)
SCORE = Fact(name="score", meaning="cards on the fireworks, of 25", higher_is_better=True)
LIVES = Fact(name="lives", meaning="lives left, of 3", higher_is_better=True)
WON = Fact(name="won", meaning="told when all had been in the room", is_success=True)


def _soups(facts: jax.Array, state: Any, reward: jax.Array) -> jax.Array:
    """Return the soups served so far, each of which pays 20."""
    return facts + jnp.maximum(reward, 0) / 20


def _hanabi(facts: jax.Array, state: Any, reward: jax.Array) -> jax.Array:
    """Return the cards on the fireworks and the lives left."""
    return jnp.stack([state.fireworks.sum(), state.life_tokens.sum()])


def _riddle(facts: jax.Array, state: Any, reward: jax.Array) -> jax.Array:
    """Return whether it was told in time."""
    return (reward > 0)[None]


def _particles(source: Any, state: Any) -> Frame:
    """Return agents among landmarks; whoever is to find one is tied to it."""
    agents, places = source.num_agents, np.asarray(state.p_pos, np.float64)
    goals = [] if state.goal is None else np.atleast_1d(state.goal).tolist()
    ways = list(
        zip(range(agents - len(goals), agents), goals, strict=True)
    )  # a speaker comes first
    return particle_frame(places[:agents], places[agents:], float(source.rad[0]), 0.1, ways=ways)


def task_of(member: str) -> Task | None:
    """Return the task of a name such as `overcooked_cramped_room`; None where there is none."""
    kind, _, rest = member.partition("_")
    if kind == "overcooked" and rest in OVERCOOKED_LAYOUTS:
        return Task(
            source="Overcooked",
            options={"layout": rest},
            max_steps=400,
            limit={"max_steps": 0},  # the observation counts down to it
            ends=False,
            facts=(SOUPS,),
            tell=_soups,
            draw=kitchen_frame,
        )
    if kind == "mpe" and rest in MPE_SCENARIOS:
        source = MPE_SCENARIOS[rest]
        return Task(
            source=source, max_steps=25, limit={"max_steps": 0}, ends=False, draw=_particles
        )
    if kind == "hanabi" and rest in ("2", "3", "4", "5"):
        return Task(
            source="Hanabi",
            options={"num_agents": int(rest)},
            # At most 42 cards are played or thrown away, and 8 + 42 + 5 hints can be paid for.
            max_steps=97,
            ends=True,
            facts=(SCORE, LIVES),
            tell=_hanabi,
        )
    if member.startswith("switch_riddle_") and member[14:].isdecimal() and int(member[14:]) > 2:
        agents = int(member[14:])
        return Task(
            source="SwitchRiddle",
            options={"num_agents": agents},
            max_steps=4 * agents - 6,  # the source's
            ends=True,
            finite_horizon=True,
            facts=(WON,),
            tell=_riddle,
        )
    if member == "coin_game":
        return Task(
            source="CoinGame",
            options={"shared_rewards": True, "num_outer_steps": 1},
            max_steps=25,
            limit={"num_inner_steps": 1},  # its own last step shows and pays nothing
            ends=False,
            draw=coins_frame,
        )
    if kind == "mabrax" and rest in MABRAX_ROBOTS:
        return Task(
            source=MABRAX_ROBOTS[rest],
            options={"auto_reset": False},
            max_steps=1000,
            limit={"episode_length": 1},
            ends=True,
        )
    return None


def maker(member: str) -> Maker | None:
    """Return how to make one environment; None for a name that is not here."""
    return Maker(JaxMarl, {"member": member}) if task_of(member) else None


class JaxMarl(JaxEnv):
    """E environments of one of JaxMARL's cooperative tasks.

    Every step pays the mean of what the source pays its agents, and `shaping` times the mean of the
    rewards that Overcooked names for steps on the way to a soup. The state is the agents'
    observations, one after another; observations of grids are flattened. `max_steps` interrupts an
    episode (truncated), but in the riddle, where all have failed then; `finite_horizon` True makes
    it the end of every task, as JaxMARL's own baselines see it. Continuous actions in [-1, 1] are
    scaled to the source's range.
    """

    def __init__(
        self,
        num_envs: int,
        member: str = "overcooked_cramped_room",
        *,
        max_steps: int | None = None,
        finite_horizon: bool | None = None,
        shaping: float = 0.0,
        device: str = "cpu",
        **options: Any,
    ) -> None:
        """Prepare the environments; `device` is JAX's, `options` are those of JaxMARL's class."""
        task = task_of(member)
        if task is None:
            raise EnvError(f"there is no environment jaxmarl/{member}")
        steps = task.max_steps if max_steps is None else max_steps
        name = f"jaxmarl/{member}"
        check_sizes(name, num_envs, steps)
        limit = {option: steps + more for option, more in task.limit.items()}
        with jax.default_device(jax.devices("cpu")[0]):
            source = _make(name, task, options | limit)
            if task.source == "SwitchRiddle":
                source.max_steps = steps + 1  # which it takes no option for
        team = Team(source, task, shaping)
        spec = EnvSpec(
            name=name,
            num_envs=num_envs,
            obs_sizes=team.obs_sizes,
            state_size=sum(team.obs_sizes),
            action_kind=team.action_kind,
            action_sizes=team.action_sizes,
            max_steps=steps,
            finite_horizon=task.finite_horizon if finite_horizon is None else finite_horizon,
            masks_actions=team.legal is not None,
            facts=task.facts,
            agent_names=tuple(map(str, source.agents)),
        )
        super().__init__(spec, team, device)
        self._source, self._draw = source, task.draw

    def frame(self, index: int) -> Frame | None:
        """Return one environment as it looks now; None where only its observations can be shown."""
        if self._draw is None:
            return None
        return self._draw(self._source, self.arrays_of(index, "frame")[0])


def _make(name: str, task: Task, options: dict[str, Any]) -> Any:
    """Return JaxMARL's environment."""
    module = import_quietly("jaxmarl.environments")
    if not hasattr(module, task.source):
        raise EnvError(f"{name} needs the package brax, which has no maintainer: pip install brax")
    fixed = dict(task.options)
    if "layout" in fixed:
        fixed["layout"] = module.overcooked_layouts[fixed["layout"]]
    try:
        return getattr(module, task.source)(**fixed | options)
    except (TypeError, AssertionError) as error:
        raise EnvError(f"{name}: JaxMARL refuses its options: {error}") from error


class Team:
    """One of JaxMARL's environments as a `JaxTask`; its arrays are the source's state and facts."""

    def __init__(self, source: Any, task: Task, shaping: float) -> None:
        """`source` is a `MultiAgentEnv` of JaxMARL."""
        self._source, self._task, self._shaping = source, task, shaping
        self._spaces = [source.action_space(agent) for agent in source.agents]
        shapes = jax.eval_shape(lambda: source.reset(jax.random.key(0))[0])
        self.obs_sizes = tuple(shapes[agent].size for agent in source.agents)
        continuous = hasattr(self._spaces[0], "low")
        self.action_kind: ActionKind = "continuous" if continuous else "discrete"
        self.action_sizes = tuple(
            int(space.shape[0] if continuous else space.n) for space in self._spaces
        )
        self.legal: Any = getattr(source, "get_legal_moves", None)
        """The source's state -> legal actions by agent; None where all are legal."""

    def begin(self, key: jax.Array) -> tuple[Any, View]:
        """Return a new episode and what is seen of it."""
        obs, state = self._source.reset(typed(key))
        facts = jnp.zeros(len(self._task.facts), jnp.float32)
        if self._task.tell:
            facts = self._told(facts, state, jnp.float32(0))
        return (state, facts), self._view(obs, state, facts)

    def advance(
        self, key: jax.Array, arrays: Any, actions: jax.Array
    ) -> tuple[Any, View, jax.Array, jax.Array]:
        """Return the episode after a step, its view, the team's reward, and whether it is over."""
        agents = self._source.agents
        state, facts = arrays
        joint = {agent: self._action(actions[index], index) for index, agent in enumerate(agents)}
        obs, state, rewards, dones, infos = self._source.step_env(typed(key), state, joint)
        reward = jnp.stack([rewards[agent] for agent in agents]).astype(jnp.float32).mean()
        facts = self._told(facts, state, reward)
        if self._shaping:
            shaped = infos["shaped_reward"]
            reward += self._shaping * jnp.stack([shaped[agent] for agent in agents]).mean()
        over = dones["__all__"] if self._task.ends else jnp.array(False)
        return (state, facts), self._view(obs, state, facts), reward, over

    def _told(self, facts: jax.Array, state: Any, reward: jax.Array) -> jax.Array:
        """Return the facts after a step."""
        told = self._task.tell(facts, state, reward) if self._task.tell else facts
        return told.astype(jnp.float32)

    def _action(self, action: jax.Array, agent: int) -> jax.Array:
        """Return an agent's action as the source takes it."""
        if self.action_kind == "discrete":
            return action
        space = self._spaces[agent]
        return space.low + (action[: self.action_sizes[agent]] + 1) / 2 * (space.high - space.low)

    def _view(self, obs: dict[str, jax.Array], state: Any, facts: jax.Array) -> View:
        """Return what is seen, the agents stacked and padded."""
        agents, most = self._source.agents, max(self.obs_sizes)
        seen = [obs[agent].reshape(-1).astype(jnp.float32) for agent in agents]
        legal = self.legal(state) if self.legal else {}
        return View(
            obs=jnp.stack([jnp.pad(row, (0, most - len(row))) for row in seen]),
            state=jnp.concatenate(seen),
            action_mask=jnp.stack([legal[agent] for agent in agents]).astype(bool)
            if legal
            else None,
            facts=facts if self._task.facts else None,
        )
