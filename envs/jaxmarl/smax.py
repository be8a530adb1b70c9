"""SMAX, the battles of the StarCraft challenge in JAX (arXiv 2311.10090), batched on the CPU.

`Battles` is two compiled functions of arrays: begin all battles, advance all of them. Run many
together, 512 or more: a step has a cost of its own beside that of its battles. JAX's threads work
only while `step` waits for them, PyTorch's only between steps, so that neither needs to leave the
other a core; no setting of JAX or of the process is changed.

Needs the extra ``smax``; importing this module imports JAX. Axes are those of `envs.base`;
K: battles restarted together.
"""

import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec, EnvStep, Fact, check_num_envs, split_ends
from envs.catalogue import SMAX_NAMES
from envs.frames import Frame
from envs.jaxmarl.smax_artist import BattleArtist
from envs.registry import Maker
from envs.rng import env_seeds
from envs.validation import checked_actions

FACTS = (
    Fact(name="won", meaning="battle won", higher_is_better=True, is_success=True),
    Fact(name="allies_alive", meaning="allies alive", higher_is_better=True),
    Fact(name="enemies_alive", meaning="enemies alive", higher_is_better=False),
    Fact(name="ally_health", meaning="share of the allies' health left", higher_is_better=True),
    Fact(name="enemy_health", meaning="share of the enemies' health left", higher_is_better=False),
)


def maker(member: str) -> Maker | None:
    """Return how to make one battle, e.g. `3m`; None for a name that JaxMARL does not ship."""
    return Maker(Smax, {"scenario": member}) if member in SMAX_NAMES else None


class BattleView(NamedTuple):
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

    view: BattleView
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


class Smax:
    """E battles of an allied team against JaxMARL's scripted enemies.

    Every step pays JaxMARL's dense reward: the share of the enemies' health taken in it, plus
    `won_battle_bonus` for a win.

    A battle that is not over after `max_steps` is lost: the source ends it so, and its own
    baselines learn from it so. `finite_horizon` is therefore True; False interrupts it instead.
    JaxMARL looks at its limit of 100 before it counts a step, so its battles last up to 101.
    """

    def __init__(
        self,
        num_envs: int,
        scenario: str = "3m",
        *,
        max_steps: int = 101,
        finite_horizon: bool = True,
        attack_mode: str = "closest",
        observation_type: str = "unit_list",
        see_enemy_actions: bool = True,
        walls_cause_death: bool = True,
        won_battle_bonus: float = 1.0,
    ) -> None:
        """Prepare the battles; call `reset` before `step`. The last five are JaxMARL's options."""
        _check_choice("attack_mode", attack_mode, ("closest", "random"))
        _check_choice("observation_type", observation_type, ("unit_list", "conic"))
        if num_envs < 1 or max_steps < 1:
            raise EnvError(
                f"smax/{scenario}: num_envs is {num_envs} and max_steps is {max_steps}; "
                "expected at least 1"
            )
        smax = import_smax()
        self._jax = jax
        self._device = jax.devices("cpu")[0]
        with jax.default_device(self._device):
            source = smax.HeuristicEnemySMAX(
                scenario=find_scenario(smax, scenario),
                attack_mode=attack_mode,
                observation_type=observation_type,
                see_enemy_actions=see_enemy_actions,
                walls_cause_death=walls_cause_death,
                won_battle_bonus=won_battle_bonus,
                max_steps=max_steps - 1,
            )
        self._battles = Battles(source, finite_horizon=finite_horizon)
        self._artist = BattleArtist(source)
        self._running: Any = None
        self._mask: Any = None
        self._spec = EnvSpec(
            name=f"smax/{scenario}",
            num_envs=num_envs,
            obs_sizes=(source.obs_size,) * source.num_agents,
            state_size=source.state_size,
            action_kind="discrete",
            action_sizes=(source.num_ally_actions,) * source.num_agents,
            max_steps=max_steps,
            finite_horizon=finite_horizon,
            masks_actions=True,
            agents_die=True,
            facts=FACTS,
        )

    @property
    def spec(self) -> EnvSpec:
        """The constants of this environment."""
        return self._spec

    def reset(self, seed: int) -> EnvStep:
        """Return the start of a new battle in every environment."""
        num_envs = self._spec.num_envs
        # The 64 bits of an environment's seed are the two words of its Threefry key.
        keys = env_seeds(seed, num_envs).view(np.uint32).reshape(num_envs, 2)
        self._running, view, facts = self._battles.begin(self._jax.device_put(keys, self._device))
        self._mask = np.asarray(view.action_mask)
        return EnvStep.first(
            obs=np.asarray(view.obs),
            state=np.asarray(view.state),
            action_mask=self._mask,
            alive=np.asarray(view.alive),
            facts=np.asarray(facts),
        )

    def step(self, actions: npt.NDArray[Any]) -> EnvStep:
        """Return what the joint actions led to; battles that ended show their successors."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: step before reset; call reset(seed) first")
        checked = checked_actions(self._spec, self._mask, actions).astype(np.int32)
        self._running, outcome = self._battles.advance(self._running, checked)
        # On the CPU, NumPy reads JAX's own buffers: nothing is copied.
        self._mask = np.asarray(outcome.view.action_mask)
        return EnvStep(
            obs=np.asarray(outcome.view.obs),
            state=np.asarray(outcome.view.state),
            rewards=np.asarray(outcome.rewards),
            terminated=np.asarray(outcome.terminated),
            truncated=np.asarray(outcome.truncated),
            final_obs=np.asarray(outcome.final_obs),
            final_state=np.asarray(outcome.final_state),
            action_mask=self._mask,
            alive=np.asarray(outcome.view.alive),
            final_alive=np.asarray(outcome.final_alive),
            facts=np.asarray(outcome.facts),
        )

    def frame(self, index: int) -> Frame:
        """Return one battle as its units; nothing of the others is fetched."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: frame before reset; call reset(seed) first")
        units = self._battles.units(self._running, index)
        return self._artist.frame(self._jax.device_get(units))

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything that changes, keys as their words."""
        if self._running is None:
            raise EnvError(f"{self._spec.name}: state_dict before reset; call reset(seed) first")
        leaves, _ = self._jax.tree_util.tree_flatten_with_path(self._running)
        return {
            "running": {self._jax.tree_util.keystr(path): np.array(leaf) for path, leaf in leaves},
            "action_mask": self._mask.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()` of an environment made with the same options."""
        check_num_envs(self._spec, len(state["action_mask"]))
        if self._running is None:
            self.reset(seed=0)
        saved = state["running"]
        self._running = self._jax.tree_util.tree_map_with_path(
            lambda path, leaf: self._jax.device_put(
                np.array(saved[self._jax.tree_util.keystr(path)], leaf.dtype), self._device
            ),
            self._running,
        )
        self._mask = state["action_mask"].copy()


def _check_choice(option: str, got: str, valid: tuple[str, ...]) -> None:
    """Raise `EnvError` unless the option is one of its values."""
    if got not in valid:
        raise EnvError(f"SMAX: {option} is {got!r}; choose one of {', '.join(valid)}")


RESTARTED_TOGETHER = 64
"""K: battles that end are begun anew in groups of so many, since most steps end only a few."""


class Battles:
    """The compiled functions of one scenario; it holds nothing that changes."""

    def __init__(self, source: Any, *, finite_horizon: bool) -> None:
        """`source` is JaxMARL's `HeuristicEnemySMAX`."""
        self._source = source
        self._finite_horizon = finite_horizon
        self.begin = jax.jit(self._begin)
        """(E, 2) keys -> `Running`, its first `BattleView` and its (E, F) facts."""
        self.advance = jax.jit(self._advance, donate_argnums=0)
        """`Running` and (E, N) int32 actions -> the next `Running`, and the `Outcome`."""
        self.units = jax.jit(_units)
        """`Running` and a battle's number -> the source's state of that battle's units."""

    def _begin(self, keys: jax.Array) -> tuple[Running, BattleView, jax.Array]:
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
        self, done: jax.Array, keys: jax.Array, battles: Any, view: BattleView
    ) -> tuple[Any, BattleView]:
        """Return battles and view with new battles where `done`, at most K of them at a time."""
        together = min(RESTARTED_TOGETHER, len(done))

        def some_left(carry: tuple[jax.Array, Any, BattleView]) -> jax.Array:
            return carry[0].any()

        def restart(carry: tuple[jax.Array, Any, BattleView]) -> tuple[jax.Array, Any, BattleView]:
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

    def _battle(self, key: jax.Array) -> tuple[Any, BattleView]:
        """Return one new battle and what is seen of it."""
        obs, battle = self._source.reset(_typed(key))
        return battle, self._view(obs, battle)

    def _step(
        self, key: jax.Array, battle: Any, actions: jax.Array
    ) -> tuple[Any, BattleView, jax.Array]:
        """Return one battle after a step, what is seen of it, and the allies' shared reward."""
        agents = self._source.agents
        joint = {agent: actions[index] for index, agent in enumerate(agents)}
        obs, battle, rewards, _, _ = self._source.step_env(_typed(key), battle, joint)
        return battle, self._view(obs, battle), rewards[agents[0]].astype(jnp.float32)

    def _view(self, obs: dict[str, jax.Array], battle: Any) -> BattleView:
        """Return one battle's arrays, the agents stacked."""
        agents = self._source.agents
        legal = self._source.get_avail_actions(battle)
        return BattleView(
            obs=jnp.stack([obs[agent] for agent in agents]).astype(jnp.float32),
            state=obs["world_state"].astype(jnp.float32),
            action_mask=jnp.stack([legal[agent] for agent in agents]).astype(jnp.bool_),
            alive=battle.state.unit_alive[: len(agents)],
        )

    def _facts(self, units: Any) -> tuple[jax.Array, jax.Array]:
        """Return one battle's (F,) facts, and whether a side has no unit left.

        If the last of both sides fall together, neither has won: JaxMARL pays no bonus then.
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


def _units(running: Running, index: int) -> Any:
    """Return the state of one battle's units."""
    return jax.tree.map(lambda leaf: leaf[index], running.battles.state)


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


def find_scenario(smax: ModuleType, name: str) -> Any:
    """Return JaxMARL's scenario of that name, one that the user registered included."""
    try:
        return smax.map_name_to_scenario(name)
    except KeyError:
        raise EnvError(
            f"SMAX has no scenario {name!r}; choose one of {', '.join(SMAX_NAMES)}, or register "
            "yours with jaxmarl.environments.smax.register_scenario"
        ) from None


def import_smax() -> ModuleType:
    """Return the module `jaxmarl.environments.smax`."""
    with _streams_kept():
        from jaxmarl.environments import smax
    module: ModuleType = smax
    return module


@contextmanager
def _streams_kept() -> Iterator[None]:
    """Keep a notice that JaxMARL prints from the screen, and the process's streams as they were.

    Its import ends with `sys.stdout` and `sys.stderr` pointing at the original streams, which
    would undo a notebook's or a test runner's own, and prints to them.
    """
    stdout, stderr, original = sys.stdout, sys.stderr, sys.__stdout__
    # Typeshed calls the original streams constant; JaxMARL reads them by that name.
    sys.stdout = sys.__stdout__ = io.StringIO()  # type: ignore[misc, assignment]  # constant to typeshed
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        sys.__stdout__ = original  # type: ignore[misc]  # as above
