"""SMAX, the battles of the StarCraft challenge in JAX (arXiv 2311.10090), batched on the CPU.

Run 512 or more together (`envs.jaxmarl.batched`). Needs the extra ``smax``; importing this module
imports JAX. Axes are those of `envs.base`.
"""

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from envs.base import EntityList, EnvError, EnvSpec, Fact
from envs.catalogue import SMAX_NAMES
from envs.frames import Frame
from envs.jaxmarl.batched import JaxEnv, View, check_sizes, typed
from envs.jaxmarl.quiet import import_quietly
from envs.jaxmarl.smax_artist import BattleArtist
from envs.registry import Maker

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


class Smax(JaxEnv):
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
        device: str = "cpu",
    ) -> None:
        """Prepare the battles; call `reset` before `step`.

        `device` is JAX's (`JaxEnv`), the five options before it are JaxMARL's.
        """
        _check_choice("attack_mode", attack_mode, ("closest", "random"))
        _check_choice("observation_type", observation_type, ("unit_list", "conic"))
        check_sizes(f"smax/{scenario}", num_envs, max_steps)
        smax = import_smax()
        with jax.default_device(jax.devices("cpu")[0]):
            source = smax.HeuristicEnemySMAX(
                scenario=find_scenario(smax, scenario),
                attack_mode=attack_mode,
                observation_type=observation_type,
                see_enemy_actions=see_enemy_actions,
                walls_cause_death=walls_cause_death,
                won_battle_bonus=won_battle_bonus,
                max_steps=max_steps - 1,
            )
        spec = EnvSpec(
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
            entities=_lists(source) if observation_type == "unit_list" else (),
        )
        super().__init__(spec, Battle(source), device)
        self._artist = BattleArtist(source)

    def frame(self, index: int) -> Frame:
        """Return one battle as its units."""
        return self._artist.frame(self.arrays_of(index, "frame").state)


def _lists(source: Any) -> tuple[EntityList, ...]:
    """Return the lists of units that each ally observes; its own features come behind."""
    size, allies = len(source.unit_features), source.num_allies - 1
    enemies = EntityList(
        name="enemies",
        first=allies * size,
        count=source.num_enemies,
        size=size,
        first_action=source.num_movement_actions,
    )
    if not allies:
        return (enemies,)
    return (EntityList(name="allies", first=0, count=allies, size=size), enemies)


def _check_choice(option: str, got: str, valid: tuple[str, ...]) -> None:
    """Raise `EnvError` unless the option is one of its values."""
    if got not in valid:
        raise EnvError(f"SMAX: {option} is {got!r}; choose one of {', '.join(valid)}")


class Battle:
    """One battle as a `JaxTask`; its arrays are the source's own state."""

    def __init__(self, source: Any) -> None:
        """`source` is JaxMARL's `HeuristicEnemySMAX`."""
        self._source = source

    def begin(self, key: jax.Array) -> tuple[Any, View]:
        """Return a new battle and what is seen of it."""
        obs, battle = self._source.reset(typed(key))
        return battle, self._view(obs, battle)[0]

    def advance(
        self, key: jax.Array, battle: Any, actions: jax.Array
    ) -> tuple[Any, View, jax.Array, jax.Array]:
        """Return the battle after a step, its view, the allies' reward, and if it is over."""
        agents = self._source.agents
        joint = {agent: actions[index] for index, agent in enumerate(agents)}
        obs, battle, rewards, _, _ = self._source.step_env(typed(key), battle, joint)
        view, over = self._view(obs, battle)
        return battle, view, rewards[agents[0]], over

    def _view(self, obs: dict[str, jax.Array], battle: Any) -> tuple[View, jax.Array]:
        """Return the battle's arrays, the agents stacked, and whether a side has no unit left."""
        agents = self._source.agents
        legal = self._source.get_avail_actions(battle)
        facts, over = self._facts(battle.state)
        view = View(
            obs=jnp.stack([obs[agent] for agent in agents]).astype(jnp.float32),
            state=obs["world_state"].astype(jnp.float32),
            action_mask=jnp.stack([legal[agent] for agent in agents]).astype(jnp.bool_),
            alive=battle.state.unit_alive[: len(agents)],
            facts=facts,
        )
        return view, over

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
    return import_quietly("jaxmarl.environments.smax")
