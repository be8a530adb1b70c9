"""SMACv2: battles of StarCraft II with units and positions drawn anew in every episode.

The game is not part of this package: see `envs.smacv2.source.INSTALL`.
"""

from functools import partial
from typing import Any

from envs.base import EnvError
from envs.families import Maker
from envs.smacv2.source import check_game, check_options
from envs.smacv2.team import StarCraftTeam
from envs.teams.environment import TeamEnv

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


def members() -> list[str]:
    """Return the maps."""
    return list(_TEAMS)


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
