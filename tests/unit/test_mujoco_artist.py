"""MuJoCo geometry on paper: capsules, boxes and discs where they belong, in whose colour."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from envs.catalogue import PARTITIONS
from envs.frames import INK, Circle, Polygon, Segment, agent_colour
from envs.mujoco.artist import CAMERAS, OBLIQUE, SIDE, TOP, BodyArtist, body_owners, floor, hull
from envs.mujoco.scenarios import Source, make_source

BOX_AND_BALL = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="9 9 1"/>
    <body name="cart" pos="1 2 3">
      <joint name="turn" axis="0 1 0"/>
      <geom type="box" size="0.3 0.1 0.2"/>
      <body name="ball" pos="1 0 0">
        <joint name="slide" type="slide" axis="0 0 1"/>
        <geom type="sphere" size="0.25"/>
      </body>
    </body>
  </worldbody>
  <actuator><motor joint="slide"/><motor joint="turn"/></actuator>
</mujoco>
"""


def box_and_ball(scenario: str) -> BodyArtist:
    """Return the artist of a box that turns and a ball that slides, one agent each."""
    model = mujoco.MjModel.from_xml_string(BOX_AND_BALL)
    env = SimpleNamespace(model=model, init_qpos=np.zeros(2), dt=0.5)
    return BodyArtist(Source(scenario=scenario, env=env, max_steps=1), [[1], [0]])


def test_every_scenario_has_a_camera() -> None:
    assert set(CAMERAS) == set(PARTITIONS)


def test_a_projection_keeps_lengths() -> None:
    points = np.array([[1.0, 2.0, 3.0]])
    # From the side the viewer stands at -y: what has a larger y is farther away.
    np.testing.assert_allclose(SIDE.project(points), [[1.0, 3.0, -2.0]], atol=1e-12)
    np.testing.assert_allclose(TOP.project(points), [[1.0, 2.0, 3.0]], atol=1e-12)
    np.testing.assert_allclose(OBLIQUE.axes @ OBLIQUE.axes.T, np.eye(3), atol=1e-9)


def test_a_capsule_is_a_segment_between_its_ends() -> None:
    # Gymnasium's swimmer.xml: the torso reaches from x = .5 to 1.5 with radius .1; mid and back
    # follow at -1 and -2. Turned by a right angle around z, x becomes y.
    source = make_source("Swimmer")
    artist = BodyArtist(source, [[0], [1]])
    turned = source.env.init_qpos.copy()
    turned[2] = np.pi / 2.0
    segments = [shape for shape in artist.draw(turned) if isinstance(shape, Segment)]
    ends = np.array([sorted([shape.start, shape.end]) for shape in segments])
    expected = [[[0, 0.5], [0, 1.5]], [[0, -0.5], [0, 0.5]], [[0, -1.5], [0, -0.5]]]
    np.testing.assert_allclose(np.sort(ends, axis=1), expected, atol=1e-6)
    assert [shape.width for shape in segments] == pytest.approx([0.2, 0.2, 0.2])
    assert [shape.colour for shape in segments] == [INK, agent_colour(0), agent_colour(1)]


def test_a_box_is_the_outline_of_its_corners() -> None:
    # From the side the box at (1, 3) is .6 wide and .4 high; turned by a right angle around y it
    # is .4 wide and .6 high, and the ball, 1 m ahead of it, hangs 1 m below it at (1, 2).
    artist = box_and_ball("HalfCheetah")
    box = next(shape for shape in artist.draw(np.zeros(2)) if isinstance(shape, Polygon))
    corners = [(0.7, 2.8), (1.3, 2.8), (1.3, 3.2), (0.7, 3.2)]
    np.testing.assert_allclose(box.points, corners, atol=1e-9)
    shapes = artist.draw(np.array([np.pi / 2.0, 0.0]))
    box = next(shape for shape in shapes if isinstance(shape, Polygon))
    ball = next(shape for shape in shapes if isinstance(shape, Circle))
    assert np.ptp(np.array(box.points), axis=0) == pytest.approx([0.4, 0.6])
    np.testing.assert_allclose(ball.centre, (1.0, 2.0), atol=1e-9)
    assert ball.radius == 0.25
    assert (box.colour, ball.colour) == (agent_colour(0), agent_colour(1))


def test_the_nearer_shape_is_drawn_later() -> None:
    # Seen from above the ball slides from below the box (z = 3) to above it.
    artist = box_and_ball("Swimmer")
    below = [type(shape) for shape in artist.draw(np.array([0.0, -1.0]))]
    above = [type(shape) for shape in artist.draw(np.array([0.0, 1.0]))]
    assert below == [Circle, Polygon]
    assert above == [Polygon, Circle]


def test_the_view_follows_the_bodies() -> None:
    source = make_source("HalfCheetah")
    artist = BodyArtist(source, [[0, 1, 2], [3, 4, 5]])
    qpos = source.env.init_qpos.copy()
    before = artist.frame(qpos)
    qpos[0] += 7.0
    after = artist.frame(qpos)
    np.testing.assert_allclose(np.subtract(after.view, before.view), [7, 0, 7, 0], atol=1e-9)
    anchors = np.subtract(after.anchors, before.anchors)
    np.testing.assert_allclose(anchors, [[7, 0], [7, 0]], atol=1e-9)


def test_marks_on_the_floor_stay_in_place() -> None:
    # A view of 3 m has a mark every 2 m: from -1 to 5 those at 0, 2 and 4.
    shapes = floor(SIDE, np.array([2.0, 0.0, 0.0]), size=3.0, reach=3.0, depth=1.0)
    marks = [shape.start[0] for shape in shapes if isinstance(shape, Segment)][1:]
    assert marks == [0.0, 2.0, 4.0]


def test_a_body_belongs_to_the_agent_that_drives_its_joint() -> None:
    # Actuator 0 slides the ball (body 2), actuator 1 turns the cart (body 1).
    model = mujoco.MjModel.from_xml_string(BOX_AND_BALL)
    assert body_owners(model, [[0], [1]]).tolist() == [-1, 1, 0]
    assert body_owners(model, [[1]]).tolist() == [-1, 0, -1]


def test_a_hull_leaves_out_what_lies_inside() -> None:
    points = [(0.0, 0.0), (2.0, 0.0), (1.0, 0.5), (2.0, 2.0), (0.0, 2.0), (1.0, 0.0)]
    assert hull(points) == ((0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0))
