"""Battles on paper: who stands where, in whose colour, how hurt, and whom it attacks."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs.frames import FAINT, Caption, Circle, HealthBar, Segment, agent_colour
from envs.jaxmarl.smax_artist import ENEMY, ENEMY_HEALTH, BattleArtist

SOURCE = SimpleNamespace(
    num_allies=2,
    time_per_step=0.25,
    world_steps_per_env_step=2,
    map_width=32,
    map_height=24,
    unit_type_radiuses=[0.5, 1.0],
    unit_type_health=[40.0, 100.0],
    unit_type_shorthands=["m", "Z"],
    num_movement_actions=5,
)
ALLY, DEAD_ALLY, ENEMY_MARINE, ENEMY_ZEALOT = (8.0, 12.0), (9.0, 10.0), (16.0, 12.0), (16.0, 16.0)


def units(**changes: Any) -> Any:
    """Return an ally and a dead one, both marines, against a marine and a zealot."""
    arrays = {
        "unit_positions": np.array([ALLY, DEAD_ALLY, ENEMY_MARINE, ENEMY_ZEALOT]),
        "unit_alive": np.array([True, False, True, True]),
        "unit_health": np.array([10.0, 0.0, 40.0, 75.0]),
        "unit_types": np.array([0, 0, 0, 1]),
        "prev_attack_actions": np.zeros(4, np.int32),
    }
    return SimpleNamespace(**(arrays | changes))


def test_units_have_colours_letters_and_health() -> None:
    shapes = BattleArtist(SOURCE).frame(units()).shapes
    discs = {s.centre: s for s in shapes if isinstance(s, Circle)}  # the last one lies on top
    letters = {s.position: s.text for s in shapes if isinstance(s, Caption)}
    assert discs[ALLY].colour == agent_colour(0)
    assert discs[ENEMY_MARINE].colour == discs[ENEMY_ZEALOT].colour == ENEMY
    assert (discs[DEAD_ALLY].colour, discs[DEAD_ALLY].filled) == (FAINT, False)
    assert discs[ENEMY_ZEALOT].radius - discs[ENEMY_MARINE].radius == pytest.approx(0.5)
    assert letters == {ALLY: "m", DEAD_ALLY: "m", ENEMY_MARINE: "m", ENEMY_ZEALOT: "Z"}
    # 10 of 40, 40 of 40 and 75 of 100; the dead have no bar.
    bars = [(s.share, s.colour) for s in shapes if isinstance(s, HealthBar)]
    assert bars == [(0.25, agent_colour(0)), (1.0, ENEMY_HEALTH), (0.75, ENEMY_HEALTH)]


def test_lines_lead_to_whom_the_living_attacked() -> None:
    # Actions from 5 on are attacks: 6 is an ally's second enemy; enemies count the two allies
    # from the last, so that 6 is the first. A dead unit's last order (5) and a walk (3) are not.
    orders = np.array([6, 5, 6, 3])
    frame = BattleArtist(SOURCE).frame(units(prev_attack_actions=orders))
    lines = [s for s in frame.shapes if isinstance(s, Segment) and s.width == 0.1]
    assert [(s.start, s.end, s.colour) for s in lines] == [
        (ALLY, ENEMY_ZEALOT, agent_colour(0)),
        (ENEMY_MARINE, ALLY, ENEMY_HEALTH),
    ]


def test_the_living_have_anchors_and_are_in_view() -> None:
    artist = BattleArtist(SOURCE)
    frame = artist.frame(units())
    assert frame.seconds_per_step == 0.5
    assert frame.anchors[1] is None
    assert frame.anchors[0] == pytest.approx((8.35, 12.35))  # .7 of the radius .5 off the centre
    # Both enemies stand at x = 16: the reward of the ally at x = 8 stands on its other side.
    assert frame.reward_places[0][0] < 8.0
    # Living units span x 8..16, y 12..16; the view is at least 17.5 wide and 14 high around them.
    assert frame.view == pytest.approx((3.25, 7.0, 20.75, 21.0))
    everywhere = np.array([(0.0, 0.0), (1.0, 1.0), (32.0, 24.0), (9.0, 9.0)])
    # A margin of 2.5 around whoever is left.
    assert artist.frame(units(unit_positions=everywhere)).view == (-2.5, -2.5, 34.5, 26.5)


def test_a_battle_without_survivors_shows_its_map() -> None:
    frame = BattleArtist(SOURCE).frame(units(unit_alive=np.zeros(4, np.bool_)))
    assert frame.view == (0.0, 0.0, 32.0, 24.0)
    assert frame.anchors == (None, None)
