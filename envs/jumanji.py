"""Jumanji's teams (arXiv 2306.09884) in JAX: robot warehouse, level-based foraging, connector.

Needs the extra ``jumanji``; importing this module imports JAX. Axes are those of `envs.base`; G:
the rows, and columns, of a grid.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from envs.base import EnvError, EnvSpec, Fact
from envs.catalogue import JUMANJI_WAREHOUSES
from envs.frames import Frame
from envs.grid_artist import connector_frame, foraging_frame, warehouse_frame
from envs.jaxmarl.batched import JaxEnv, View, check_sizes
from envs.registry import Maker

Look = Callable[[Any], jax.Array]
"""An observation of Jumanji's -> (N, O), what each agent sees."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """How one of Jumanji's environments is made, and what it means."""

    make: Callable[..., Any]
    """Called with the generator's options that the user changes, and `time_limit`."""
    max_steps: int
    look: Look
    facts: tuple[Fact, ...]
    tell: Callable[[jax.Array, Any, jax.Array], jax.Array]
    """(F,) facts before a step, the state and the team's reward after it -> the facts after it."""
    draw: Callable[[Any, Any], Frame]
    """Jumanji's environment and a state of it -> what it looks like."""


def maker(member: str) -> Maker | None:
    """Return how to make one environment; None for a name that is not here."""
    known = member in ("foraging", "connector") or member in JUMANJI_WAREHOUSES
    return Maker(Jumanji, {"member": member}) if known else None


def task_of(member: str) -> Task:
    """Return the task of a name, with the sizes of the benchmarks that the original is known by."""
    if member in JUMANJI_WAREHOUSES:
        return Task(
            make=_maker_of("robot_warehouse", "RobotWarehouse", JUMANJI_WAREHOUSES[member]),
            max_steps=500,
            look=lambda obs: obs.agents_view,
            facts=(Fact(name="delivered", meaning="shelves delivered", higher_is_better=True),),
            tell=lambda facts, state, reward: facts + reward,
            draw=warehouse_frame,
        )
    if member == "foraging":
        sizes = {"grid_size": 8, "fov": 8, "num_agents": 2, "num_food": 2, "force_coop": True}
        return Task(
            make=_maker_of("lbf", "LevelBasedForaging", sizes),
            max_steps=100,
            look=lambda obs: obs.agents_view,
            facts=(Fact(name="eaten", meaning="share of the food eaten", higher_is_better=True),),
            tell=lambda facts, state, reward: state.food_items.eaten.mean()[None],
            draw=foraging_frame,
        )
    return Task(
        make=_maker_of("connector", "Connector", {"grid_size": 10, "num_agents": 5}),
        max_steps=50,
        look=_own_and_others,
        facts=(Fact(name="connected", meaning="all agents connected", is_success=True),),
        tell=lambda facts, state, reward: state.agents.connected.all()[None],
        draw=connector_frame,
    )


def _maker_of(module: str, name: str, sizes: dict[str, Any]) -> Callable[..., Any]:
    """Return what makes an environment, its generator of episodes made with `sizes`."""

    def make(time_limit: int, **changed: Any) -> Any:
        place = importlib.import_module(f"jumanji.environments.routing.{module}")
        generators = importlib.import_module(f"{place.__name__}.generator")
        kind = "RandomWalkGenerator" if module == "connector" else "RandomGenerator"
        generator = getattr(generators, kind)(**sizes | changed)
        return getattr(place, name)(generator=generator, time_limit=time_limit)

    return make


def _own_and_others(obs: Any) -> jax.Array:
    """Return the connector's grid as each agent sees it: six planes of (G, G), flattened.

    A path, a head and a target of its own, and those of all others.
    """
    grid, agents = obs.grid, jnp.arange(len(obs.action_mask))
    # An agent i writes 3 i + 1 for its path, 3 i + 2 for its head and 3 i + 3 for its target.
    taken, owner, kind = grid > 0, (grid - 1) // 3, (grid - 1) % 3
    own = taken & (owner == agents[:, None, None])
    planes = [mine & (kind == k) for mine in (own, taken & ~own) for k in range(3)]
    return jnp.stack(planes, axis=1).reshape(len(agents), -1)


class Jumanji(JaxEnv):
    """E environments of one of Jumanji's teams.

    The reward is what Jumanji pays the team, or the sum over its agents. In the warehouse a
    collision ends an episode. The state is the agents' observations, one after another. `max_steps`
    interrupts an episode (truncated); `finite_horizon` True makes it the end of the task.
    """

    def __init__(
        self,
        num_envs: int,
        member: str = "warehouse_tiny_4ag_easy",
        *,
        max_steps: int | None = None,
        finite_horizon: bool = False,
        **sizes: Any,
    ) -> None:
        """Prepare the environments; `sizes` are options of Jumanji's generator of episodes."""
        task, name = task_of(member), f"jumanji/{member}"
        steps = task.max_steps if max_steps is None else max_steps
        check_sizes(name, num_envs, steps)
        with jax.default_device(jax.devices("cpu")[0]):
            try:
                source = task.make(time_limit=steps + 1, **sizes)  # the limit is ours
            except (TypeError, AssertionError) as error:
                raise EnvError(f"{name}: Jumanji refuses its options: {error}") from error
        team = Team(source, task)
        view = jax.eval_shape(lambda: team.begin(jnp.zeros(2, jnp.uint32))[1])
        agents, features = view.obs.shape
        spec = EnvSpec(
            name=name,
            num_envs=num_envs,
            obs_sizes=(features,) * agents,
            state_size=agents * features,
            action_kind="discrete",
            action_sizes=(view.action_mask.shape[1],) * agents,
            max_steps=steps,
            finite_horizon=finite_horizon,
            masks_actions=True,
            facts=task.facts,
        )
        super().__init__(spec, team)
        self._source, self._draw = source, task.draw

    def frame(self, index: int) -> Frame:
        """Return one environment as it looks now."""
        return self._draw(self._source, self.arrays_of(index, "frame")[0])


class Team:
    """One of Jumanji's environments as a `JaxTask`; its arrays are the source's state and facts."""

    def __init__(self, source: Any, task: Task) -> None:
        """`source` is Jumanji's environment."""
        self._source, self._task = source, task

    def begin(self, key: jax.Array) -> tuple[Any, View]:
        """Return a new episode and what is seen of it."""
        state, first = self._source.reset(key)
        facts = jnp.zeros(len(self._task.facts), jnp.float32)
        return (state, facts), self._view(first.observation, facts)

    def advance(
        self, key: jax.Array, arrays: Any, actions: jax.Array
    ) -> tuple[Any, View, jax.Array, jax.Array]:
        """Return the episode after a step, its view, the team's reward, and whether it is over."""
        state, facts = arrays
        state, step = self._source.step(state, actions)
        reward = step.reward.astype(jnp.float32).sum()
        facts = self._task.tell(facts, state, reward).astype(jnp.float32)
        return (state, facts), self._view(step.observation, facts), reward, step.last()

    def _view(self, obs: Any, facts: jax.Array) -> View:
        """Return what the team sees."""
        seen = self._task.look(obs).astype(jnp.float32)
        return View(
            obs=seen, state=seen.reshape(-1), action_mask=obs.action_mask.astype(bool), facts=facts
        )
