"""SMACv2: battles of StarCraft II with units and positions drawn anew in every episode.

The game is not part of this package: see `envs.registry.INSTALL_SMACV2`. The calls used here were
read in `smacv2/env/starcraft2/` (`starcraft2.py`, `wrapper.py`, `distributions.py`) at commit
9dabb98 of github.com/oxwhirl/smacv2, and in PySC2 4.0.0.

Axes are those of `envs.base`.
"""

import importlib
import os
import random
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.adapters.team import TeamView
from envs.adapters.team_env import TeamEnv
from envs.base import EnvError, EnvSpec, Fact, FloatArray
from envs.registry import INSTALL_SMACV2, Maker

_TEAMS: dict[str, dict[str, Any]] = {
    "10gen_terran": {
        "unit_types": ["marine", "marauder", "medivac"],
        "weights": [0.45, 0.45, 0.1],
        "exception_unit_types": ["medivac"],
    },
    "10gen_protoss": {
        "unit_types": ["stalker", "zealot", "colossus"],
        "weights": [0.45, 0.45, 0.1],
    },
    "10gen_zerg": {
        "unit_types": ["zergling", "baneling", "hydralisk"],
        "weights": [0.45, 0.1, 0.45],
        "exception_unit_types": ["baneling"],
    },
}
"""Map, and the units drawn on it: smacv2/examples/configs/sc2_gen_*.yaml, as the next two."""
_POSITIONS = {"dist_type": "surrounded_and_reflect", "p": 0.5, "map_x": 32, "map_y": 32}
_SETTINGS = {
    "obs_own_pos": True,
    "use_unit_ranges": True,
    "min_attack_range": 2,
    "prob_obs_enemy": 1.0,  # Less is upstream's harder variant: allies overlook enemies in sight.
}
FACTS = (
    Fact(name="won", meaning="whether the battle was won", higher_is_better=True, is_success=True),
    Fact(name="allies_alive", meaning="allies alive", higher_is_better=True),
    Fact(name="enemies_alive", meaning="enemies alive", higher_is_better=False),
    Fact(name="ally_health", meaning="share of the allies' health left", higher_is_better=True),
    Fact(name="enemy_health", meaning="share of the enemies' health left", higher_is_better=False),
    Fact(name="game_died", meaning="whether the game died in this battle", higher_is_better=False),
)
"""Health counts shields too."""


def maker(member: str) -> Maker | None:
    """Return the maker of a map."""
    return Maker(smacv2, {"map_name": member}) if member in _TEAMS else None


def smacv2(
    num_envs: int,
    map_name: str,
    *,
    allies: int = 5,
    enemies: int = 5,
    max_steps: int | None = None,
    finite_horizon: bool = True,
    capability_config: dict[str, Any] | None = None,
    relaunches: int = 3,
    workers: int | None = None,
    timeout: float = 300.0,
    **options: Any,
) -> TeamEnv:
    """Return `num_envs` games of a map, each in a worker process of its own unless `workers` says.

    A battle not decided within `max_steps` (the map's limit unless given) is lost, as in upstream's
    own training, and so terminated; with `finite_horizon` False it is interrupted (truncated).
    `capability_config` replaces the distributions of units and positions that upstream's
    configuration has for the map, `options` are those of its ``StarCraft2Env``. A game that dies
    is launched again, but no more than `relaunches` times in a row. `timeout` is how many seconds
    a step may take, the launch of a game included.

    A seed fixes the units and positions of an episode, and who notices whom; how the battle goes
    is the game's. An open battle therefore cannot be repeated: a resumed run cuts it off.
    """
    capabilities = capability_config or capabilities_of(map_name, allies, enemies)
    check_options(options, capabilities)
    check_game()
    if relaunches < 0:
        raise EnvError(f"smacv2: relaunches is {relaunches}; give 0 or more")
    team = partial(
        StarCraftTeam,
        f"smacv2/{map_name}",
        _SETTINGS | options | {"map_name": map_name, "capability_config": capabilities},
        max_steps=max_steps,
        finite_horizon=finite_horizon,
        relaunches=relaunches,
    )
    workers = num_envs if workers is None else workers
    return TeamEnv(team, num_envs, workers=workers, timeout=timeout, repeats=False)


def capabilities_of(map_name: str, allies: int, enemies: int) -> dict[str, Any]:
    """Return upstream's distributions for a map, with another number of units."""
    if allies < 1 or enemies < 1:
        raise EnvError(f"smacv2: {allies} allies against {enemies} enemies; give at least 1 each")
    return {
        "n_units": allies,
        "n_enemies": enemies,
        "team_gen": {"dist_type": "weighted_teams", "observe": True, **_TEAMS[map_name]},
        "start_positions": dict(_POSITIONS),
    }


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
        """The constants of the task, with one environment."""
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
                f"complete. {INSTALL_SMACV2}"
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


class EpisodeDraws:
    """The random numbers of one episode, for code that seeds none of its generators.

    Unit types and start positions are drawn by distributions with generators of their own and by
    ``random``; who notices an enemy first, by ``random`` and ``numpy.random``.
    """

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed).get_state()

    def seeded(self, distributions: dict[str, Any]) -> dict[str, Any]:
        """Return copies of distributions that draw from this episode's generator."""
        copies = deepcopy(distributions)
        for distribution in copies.values():
            self._hand_over(distribution)
        return copies

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let this episode's numbers be the global ones meanwhile: upstream draws from those."""
        python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - upstream's own
        random.setstate(self._python)
        np.random.set_state(self._numpy)  # noqa: NPY002 - upstream's own
        try:
            yield
        finally:
            self._python, self._numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - upstream's own
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - upstream's own

    def _hand_over(self, distribution: Any) -> None:
        """Replace the generators of a distribution and of those inside it."""
        for name, value in list(vars(distribution).items()):
            if isinstance(value, np.random.Generator):
                setattr(distribution, name, self._rng)
            elif hasattr(value, "generate"):
                self._hand_over(value)


class GameDeathError(Exception):
    """StarCraft II stopped answering."""


_OUR_OPTIONS = ("seed", "continuing_episode", "map_name", "capability_config")


def check_options(options: dict[str, Any], capabilities: dict[str, Any]) -> None:
    """Raise on settings that are not the user's, or that tie an episode to the ones before."""
    for name in _OUR_OPTIONS:
        if name in options:
            raise EnvError(f"smacv2: {name} is set by this package; leave the option out")
    for name, capability in capabilities.items():
        if isinstance(capability, dict) and capability.get("test_mode"):
            raise EnvError(
                f"smacv2: the capability {name} with test_mode takes its items in order, so an "
                "episode would not depend on its seed alone; set test_mode to False"
            )


def check_game() -> None:
    """Raise unless the game and the maps lie where PySC2 looks for them."""
    told = os.environ.get("SC2PATH")
    if told is None and sys.platform != "linux":
        return  # PySC2 asks the game's launcher where it is.
    folder = Path(told or "~/StarCraftII").expanduser()
    for path in (folder, folder / "Versions", folder / "Maps" / "SMAC_Maps"):
        if not path.is_dir():
            raise EnvError(f"smacv2: there is no folder {path}. {INSTALL_SMACV2}")


def game_errors() -> tuple[type[Exception], ...]:
    """Return what is raised when the game died or could not be reached."""
    flags = importlib.import_module("absl.flags").FLAGS
    if not flags.is_parsed():
        flags.mark_as_parsed()  # PySC2 reads flags that only a program of its own would parse.
    protocol, controller, process = (
        importlib.import_module(f"pysc2.lib.{name}")
        for name in ("protocol", "remote_controller", "sc_process")
    )
    return (
        GameDeathError,
        protocol.ConnectionError,
        protocol.ProtocolError,
        controller.ConnectError,
        controller.RequestError,
        process.SC2LaunchError,
    )


def made(options: dict[str, Any], seed: int | None) -> Any:
    """Return a `StarCraftCapabilityEnvWrapper` whose game is launched by its first reset.

    `seed` is that of the game itself, which lasts for many episodes. ``continuing_episode`` only
    makes upstream say which battles its time limit ended.
    """
    wrapper = _wrapper()
    try:
        # Upstream writes into the capabilities it is given.
        return wrapper(**deepcopy(options), seed=seed, continuing_episode=True)
    except TypeError as error:
        raise EnvError(
            f"smacv2's StarCraft2Env does not take {options}: {error}; correct the options"
        ) from error


def _wrapper() -> Any:
    """Return upstream's class, or raise with what to install."""
    try:
        return importlib.import_module("smacv2.env").StarCraftCapabilityEnvWrapper
    except ModuleNotFoundError as error:
        raise EnvError(f"smacv2 cannot be imported ({error}). {INSTALL_SMACV2}") from error
