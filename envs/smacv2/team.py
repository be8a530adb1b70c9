"""One StarCraft II game as a `Team`.

Axes: N agents, O observation features, S state features, A actions.
"""

import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.base import EnvError, EnvSpec, Fact, FloatArray
from envs.smacv2.source import INSTALL, EpisodeDraws, GameDeathError, game_errors, made
from envs.teams.team import TeamView

FACTS = (
    Fact(name="won", meaning="whether the battle was won", higher_is_better=True, is_success=True),
    Fact(name="allies_alive", meaning="allies alive", higher_is_better=True),
    Fact(name="enemies_alive", meaning="enemies alive", higher_is_better=False),
    Fact(name="ally_health", meaning="share of the allies' health left", higher_is_better=True),
    Fact(name="enemy_health", meaning="share of the enemies' health left", higher_is_better=False),
    Fact(name="game_died", meaning="whether the game died in this battle", higher_is_better=False),
)
"""Health counts shields too."""


class StarCraftTeam:
    """A game that is launched by the first reset, and again whenever it died.

    The battle in which a game dies is truncated: unpaid in that step, with what was seen last as
    its end. Without a battle that ends by itself in between, the death after `relaunches` others
    is an error.
    """

    def __init__(
        self,
        name: str,
        options: dict[str, Any],
        *,
        max_steps: int | None,
        finite_horizon: bool,
        relaunches: int,
    ) -> None:
        self._options = options
        self._finite_horizon = finite_horizon
        self._relaunches = relaunches
        env = made(options, seed=None)
        self._errors = game_errors()
        self._max_steps = env.episode_limit if max_steps is None else max_steps
        info = env.get_env_info()
        agents = int(info["n_agents"])
        self._spec = EnvSpec(
            name=name,
            num_envs=1,
            obs_sizes=(int(info["obs_shape"]),) * agents,
            state_size=int(info["state_shape"]),
            action_kind="discrete",
            action_sizes=(int(info["n_actions"]),) * agents,
            max_steps=self._max_steps,
            finite_horizon=finite_horizon,
            masks_actions=True,
            agents_die=True,
            facts=FACTS,
        )
        self._env: Any = None
        self._is_used = False
        """Whether a battle of this game has come to its end."""
        self._distributions: dict[str, Any] = {}
        self._draws = EpisodeDraws(0)
        self._deaths = 0

    @property
    def spec(self) -> EnvSpec:
        """The constants of the task, with one copy."""
        return self._spec

    def reset(self, seed: int, view: TeamView) -> None:
        """Start the battle whose units and positions `seed` determines."""
        begun = False
        while not begun:
            try:
                self._begin(seed)
                begun = True
            except self._errors as error:
                self._bury(error)
        self._show(view, won=False)

    def step(self, actions: npt.NDArray[Any], view: TeamView) -> tuple[float, bool, bool]:
        """Apply (N,) integers; the dead can only choose 0."""
        try:
            with self._draws.used():
                reward, ended, info = self._env.step([int(action) for action in actions])
            # Upstream restarts a dead game itself, and then tells nothing about the step.
            if "battle_won" not in info:
                raise GameDeathError("it stopped answering in the middle of a battle")
        except self._errors as error:
            self._bury(error)
            view.facts[-1] = 1.0
            return 0.0, False, True
        if ended:
            self._deaths = 0
            self._is_used = True
        self._show(view, info["battle_won"])
        if info.get("episode_limit"):
            return float(reward), self._finite_horizon, not self._finite_horizon
        return float(reward), bool(ended), False

    def close(self) -> None:
        """End the game."""
        if self._env is not None:
            with suppress(*self._errors):
                self._env.close()
            self._env = None

    def _begin(self, seed: int) -> None:
        """Place the units, in a new game if there is none.

        Until a game's first battle has ended, upstream's reset launches another one beside it.
        """
        if not self._is_used:
            self.close()
        if self._env is None:
            self._env = made(self._options, seed)
            self._is_used = False
            self._env.env.episode_limit = self._max_steps
            self._distributions = self._env.env_key_to_distribution_map
        env = self._env
        self._draws = EpisodeDraws(seed)
        env.env_key_to_distribution_map = self._draws.seeded(self._distributions)
        restarts = env.force_restarts
        try:
            with self._draws.used():
                env.reset()
        except Exception as error:
            if env.force_restarts != restarts:
                raise GameDeathError(f"it died at the start of a battle ({error})") from error
            raise
        # After a restart within a reset, upstream goes on with the units of the battle before.
        if env.force_restarts != restarts:
            raise GameDeathError("it died at the start of a battle")
        _scale_rewards(env.env)

    def _bury(self, error: Exception) -> None:
        """Close a game that died; raise if that happened too often in a row."""
        self._deaths += 1
        self.close()
        what = f"StarCraft II died: {type(error).__name__}: {error}"
        if self._deaths > self._relaunches:
            raise EnvError(
                f"{what}; that makes {self._deaths} deaths without a battle in between that came "
                f"to its end, and the option relaunches allows {self._relaunches}. Look for memory "
                "that ran out and for what the game wrote; if it never started, see whether it is "
                f"complete. {INSTALL}"
            ) from error
        warnings.warn(f"{self._spec.name}: {what}; it is launched again", stacklevel=2)

    def _show(self, view: TeamView, won: bool) -> None:
        """Write what is seen; an agent that may do nothing (action 0) is dead."""
        env, spec = self._env, self._spec
        N = spec.num_agents
        with self._draws.used():
            view.obs[:] = _shaped(env.get_obs(), (N, spec.obs_size), "get_obs()")
            view.state[:] = _shaped(env.get_state(), (spec.state_size,), "get_state()")
            mask = _shaped(env.get_avail_actions(), (N, spec.action_size), "get_avail_actions()")
        view.action_mask[:] = mask > 0
        view.alive[:] = ~view.action_mask[:, 0]
        view.obs[~view.alive] = 0.0
        allies, enemies = env.agents.values(), env.enemies.values()
        view.facts[:] = (
            won,
            sum(unit.health > 0 for unit in allies),
            sum(unit.health > 0 for unit in enemies),
            _health_left(allies),
            _health_left(enemies),
            0.0,
        )


def _scale_rewards(env: Any) -> None:
    """Let the best return of this battle be upstream's ``reward_scale_rate``, as documented there.

    Upstream takes the enemies of the first battle of a game as the measure for all later ones,
    which would make a battle's rewards depend on when its game was launched.
    """
    health = sum(unit.health_max + unit.shield_max for unit in env.enemies.values())
    env.max_reward = env.n_enemies * env.reward_death_value + env.reward_win + health


def _health_left(units: Iterable[Any]) -> float:
    """Return the share of all units' health and shields that the living have."""
    whole = left = 0.0
    for unit in units:
        whole += unit.health_max + unit.shield_max
        left += unit.health + unit.shield if unit.health > 0 else 0.0
    return left / whole


def _shaped(values: Any, shape: tuple[int, ...], call: str) -> FloatArray:
    """Return numbers of the promised shape."""
    array = np.asarray(values, np.float32)
    if array.shape != shape:
        raise EnvError(
            f"smacv2: {call} returned shape {array.shape}, get_env_info() promises {shape}; "
            "install another version of smacv2"
        )
    return array
