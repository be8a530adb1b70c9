"""SMAX battles as two compiled functions of arrays: begin all of them, advance all of them.

Importing this module imports JAX. Axes: E battles, K battles restarted together, N allies,
O observation features, S state features, A actions, F facts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.teams.time_limits import split_ends

RESTARTED_TOGETHER = 64
"""K: battles that end are begun anew in groups of so many, since most steps end only a few."""


class View(NamedTuple):
    """What the team sees of its battles."""

    obs: jax.Array
    """(E, N, O) float32."""
    state: jax.Array
    """(E, S) float32."""
    action_mask: jax.Array
    """(E, N, A) True where an action is legal."""
    alive: jax.Array
    """(E, N) True while the unit lives."""


class Running(NamedTuple):
    """Everything that changes from step to step."""

    keys: jax.Array
    """(E, 2) uint32 words of each battle's Threefry key."""
    battles: Any
    """The source's own state; every array starts with the axis E."""


class Outcome(NamedTuple):
    """What one step of all battles led to."""

    view: View
    """Where a battle ended, its successor."""
    final_obs: jax.Array
    """(E, N, O) before any restart."""
    final_state: jax.Array
    """(E, S) before any restart."""
    final_alive: jax.Array
    """(E, N) before any restart."""
    rewards: jax.Array
    """(E,) the source's shaped reward."""
    terminated: jax.Array
    """(E,) booleans."""
    truncated: jax.Array
    """(E,) booleans."""
    facts: jax.Array
    """(E, F) won, allies alive, enemies alive, allies' health, enemies' health."""


class Battles:
    """The compiled functions of one scenario; it holds nothing that changes."""

    def __init__(self, source: Any, *, finite_horizon: bool) -> None:
        """`source` is JaxMARL's `HeuristicEnemySMAX`."""
        self._source = source
        self._finite_horizon = finite_horizon
        self.begin = jax.jit(self._begin)
        """(E, 2) keys -> `Running`, its first `View` and its (E, F) facts."""
        self.advance = jax.jit(self._advance, donate_argnums=0)
        """`Running` and (E, N) int32 actions -> the next `Running`, and the `Outcome`."""
        self.units = jax.jit(_units)
        """`Running` and a battle's number -> the source's state of that battle's units."""

    def _begin(self, keys: jax.Array) -> tuple[Running, View, jax.Array]:
        """Return new battles, each drawn from its own key."""
        keys, reset_keys = _split(keys)
        battles, view = jax.vmap(self._battle)(reset_keys)
        running = Running(keys, battles)
        facts, _ = jax.vmap(self._facts)(battles.state)
        return _as_typed(running, running), view, facts

    def _advance(self, running: Running, actions: jax.Array) -> tuple[Running, Outcome]:
        """Return battles one step later; those that ended are begun anew.

        A battle's keys are drawn as `MultiAgentEnv.step` of JaxMARL draws them.
        """
        keys, step_keys = _split(running.keys)
        step_keys, reset_keys = _split(step_keys)
        battles, seen, rewards = jax.vmap(self._step)(step_keys, running.battles, actions)
        battles = _as_typed(battles, running.battles)
        facts, over = jax.vmap(self._facts)(battles.state)

        # The source, too, compares before it counts the step.
        out_of_time = battles.state.step > self._source.max_steps
        terminated, truncated = split_ends(self._finite_horizon, over, out_of_time)
        battles, view = self._restart(terminated | truncated, reset_keys, battles, seen)
        outcome = Outcome(
            view=view,
            final_obs=seen.obs,
            final_state=seen.state,
            final_alive=seen.alive,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            facts=facts,
        )
        return Running(keys, battles), outcome

    def _restart(
        self, done: jax.Array, keys: jax.Array, battles: Any, view: View
    ) -> tuple[Any, View]:
        """Return battles and view with new battles where `done`, at most K of them at a time."""
        together = min(RESTARTED_TOGETHER, len(done))

        def some_left(carry: tuple[jax.Array, Any, View]) -> jax.Array:
            return carry[0].any()

        def restart(carry: tuple[jax.Array, Any, View]) -> tuple[jax.Array, Any, View]:
            left, *old = carry
            # Rows past the end fill the group up; they are read as the last one, never written.
            rows = jnp.nonzero(left, size=together, fill_value=len(done))[0]
            new = jax.vmap(self._battle)(keys[rows])
            battles, view = jax.tree.map(
                lambda was, now: was.at[rows].set(now.astype(was.dtype), mode="drop"),
                tuple(old),
                new,
            )
            return left.at[rows].set(False, mode="drop"), battles, view

        _, battles, view = jax.lax.while_loop(some_left, restart, (done, battles, view))
        return battles, view

    def _battle(self, key: jax.Array) -> tuple[Any, View]:
        """Return one new battle and what is seen of it."""
        obs, battle = self._source.reset(_typed(key))
        return battle, self._view(obs, battle)

    def _step(self, key: jax.Array, battle: Any, actions: jax.Array) -> tuple[Any, View, jax.Array]:
        """Return one battle after a step, what is seen of it, and the allies' shared reward."""
        agents = self._source.agents
        joint = {agent: actions[index] for index, agent in enumerate(agents)}
        obs, battle, rewards, _, _ = self._source.step_env(_typed(key), battle, joint)
        return battle, self._view(obs, battle), rewards[agents[0]].astype(jnp.float32)

    def _view(self, obs: dict[str, jax.Array], battle: Any) -> View:
        """Return one battle's arrays, the agents stacked."""
        agents = self._source.agents
        legal = self._source.get_avail_actions(battle)
        return View(
            obs=jnp.stack([obs[agent] for agent in agents]).astype(jnp.float32),
            state=obs["world_state"].astype(jnp.float32),
            action_mask=jnp.stack([legal[agent] for agent in agents]).astype(jnp.bool_),
            alive=battle.state.unit_alive[: len(agents)],
        )

    def _facts(self, units: Any) -> tuple[jax.Array, jax.Array]:
        """Return one battle's (F,) facts, and whether a side has no unit left.

        If the last of both sides fall together, nobody has won: JaxMARL pays no bonus then.
        """
        count = len(self._source.agents)
        living = units.unit_alive
        allies, enemies = living[:count].sum(), living[count:].sum()
        full = self._source.unit_type_health[units.unit_types]
        ally_health = units.unit_health[:count].sum() / full[:count].sum()
        enemy_health = units.unit_health[count:].sum() / full[count:].sum()
        won = (enemies == 0) & (allies > 0)
        facts = jnp.stack([won, allies, enemies, ally_health, enemy_health])
        return facts.astype(jnp.float32), (allies == 0) | (enemies == 0)


def _units(running: Running, copy: int) -> Any:
    """Return the state of one battle's units."""
    return jax.tree.map(lambda leaf: leaf[copy], running.battles.state)


def _typed(key: jax.Array) -> jax.Array:
    """Return a key from its words, whatever generator the user's JAX is set to."""
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def _split(keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return two sets of (E, 2) key words from one."""
    pairs = jax.random.key_data(jax.vmap(jax.random.split)(_typed(keys)))
    return pairs[:, 0], pairs[:, 1]


def _as_typed(tree: Any, like: Any) -> Any:
    """Return arrays of exactly the types of `like`, so that one compilation serves every step."""
    return jax.tree.map(lambda array, model: array.astype(model.dtype), tree, like)
