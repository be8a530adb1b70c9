"""Films: pixels where the geometry says, bars apart, scales and speeds worked by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from envs import Frame
from envs.frames import Caption, Circle, HealthBar, Polygon, Segment, Shape, agent_colour
from marl.config import ConfigError
from marl.reports.drawing import Projection, paint_scene, spread_out
from marl.reports.movies import movie_format, write_movie
from marl.reports.video import (
    FilmOptions,
    Panel,
    Play,
    Trace,
    fitting,
    pace,
    reward_traces,
    scaled,
    text_width,
)

RED = (255, 0, 0)


def frame(*shapes: Shape, free: bool = False) -> Frame:
    """Return a frame that shows x and y from 0 to 10 with one agent in the middle."""
    return Frame(
        shapes=shapes,
        view=(0.0, 0.0, 10.0, 10.0),
        anchors=((5.0, 5.0),),
        reward_places=((5.0, 5.0),) if free else (),
        seconds_per_step=0.05,
    )


def a_play(steps: int = 8, *, learned: bool = True, local: bool = True) -> Play:
    """Return a play of two agents whose rewards rise."""
    rising = np.linspace(-1.0, 1.0, steps)
    return Play(
        frames=(frame(),) * steps,
        rewards=np.ones(steps),
        team=rising if learned else None,
        local=np.stack([rising, -rising], axis=1) if learned and local else None,
        agents=("agent 0", "wolf"),
        pictures=(None,) * steps,
    )


def test_a_projection_fits_the_view_in_whole() -> None:
    # A view 4 wide and 2 high in 200 x 200 pixels: 50 pixels a unit, 50 left over above and below.
    to_pixels = Projection((0.0, 0.0, 4.0, 2.0), 200, 200)
    assert to_pixels.scale == 50.0
    assert to_pixels((0.0, 2.0)) == (0.0, 50.0)
    assert to_pixels((4.0, 0.0)) == (200.0, 150.0)


@pytest.mark.parametrize(
    ("shape", "inside", "outside"),
    [
        # 10 pixels a unit, y upwards.
        (Circle(centre=(2.0, 8.0), radius=1.0, colour="#ff0000"), (20, 20), (20, 35)),
        (
            Segment(start=(2.0, 2.0), end=(8.0, 2.0), width=1.0, colour="#ff0000"),
            (50, 83),
            (50, 88),
        ),
        (
            Polygon(points=((1.0, 1.0), (4.0, 1.0), (4.0, 4.0)), colour="#ff0000"),
            (35, 80),
            (15, 70),
        ),
        (
            HealthBar(position=(5.0, 5.0), width=4.0, share=0.5, colour="#ff0000"),
            (35, 50),
            (65, 50),
        ),
    ],
)
def test_shapes_lie_where_the_view_puts_them(
    shape: Shape, inside: tuple[int, int], outside: tuple[int, int]
) -> None:
    picture = paint_scene(frame(shape), None, 100, 100)
    assert picture.getpixel(inside) == RED
    assert picture.getpixel(outside) != RED


def test_rings_and_labels_are_drawn() -> None:
    empty = paint_scene(frame(), None, 100, 100)
    ring = Circle(centre=(5.0, 5.0), radius=3.0, colour="#ff0000", filled=False)
    picture = paint_scene(frame(ring), None, 100, 100)
    assert picture.getpixel((21, 50)) == RED
    assert picture.getpixel((50, 50)) == empty.getpixel((50, 50))
    label = Caption(position=(5.0, 5.0), text="3 m")
    assert paint_scene(frame(label), None, 100, 100).tobytes() != empty.tobytes()


@pytest.mark.parametrize(("value", "y"), [(1.0, 40), (-1.0, 60), (5.0, 40)])
def test_a_bar_grows_up_for_good_and_down_for_bad(value: float, y: int) -> None:
    # The bar lies on the free anchor in the middle: 100 x 100 pixels, zero at y = 50.
    colour = tuple(bytes.fromhex(agent_colour(0)[1:]))
    picture = paint_scene(frame(free=True), [value], 100, 100)
    assert picture.getpixel((50, y)) == colour
    assert picture.getpixel((50, 100 - y)) == (255, 255, 255)


def test_bars_do_not_cover_each_other() -> None:
    places = spread_out([(100.0, 100.0), (100.0, 100.0), (104.0, 100.0), (300.0, 0.0)], 400, 200)
    close = sorted(x for x, _ in places[:3])
    assert min(np.diff(close)) > 12.0  # a bar is 10 wide
    assert places[3] == (300.0, 26.0)  # alone: only moved into the picture, half a bar and 2


def test_the_largest_rewards_fill_a_bar() -> None:
    # 100 ones and one 50: the 98th percentile of the sizes is 1.
    values = np.array([1.0] * 50 + [-1.0] * 50 + [50.0])
    assert scaled(values).tolist() == [1.0] * 50 + [-1.0] * 50 + [1.0]
    assert scaled(np.zeros(3)).tolist() == [0.0] * 3
    rare = np.zeros(1000)
    rare[-1] = -4.0  # an episodic reward: the percentile is 0, the size of the largest counts
    assert scaled(rare)[-1] == -1.0


def test_rows_are_the_team_and_each_agent_or_the_task_alone() -> None:
    assert [row.name for row in reward_traces(a_play())] == ["team", "agent 0", "wolf"]
    assert [row.name for row in reward_traces(a_play(local=False))] == ["team"]
    assert [row.name for row in reward_traces(a_play(learned=False))] == ["task"]


def test_a_panel_traces_what_is_past() -> None:
    shown = a_play()
    row = Trace(name="team", colour="#ff0000", values=np.ones(8))
    panel = Panel(shown, (row,), "title", "detail")
    reds = [np.asarray(panel.paint(step, 200))[..., 0] for step in (0, 7)]
    greens = [np.asarray(panel.paint(step, 200))[..., 1] for step in (0, 7)]
    counts = [int(((r > 200) & (g < 60)).sum()) for r, g in zip(reds, greens, strict=True)]
    assert counts[1] > counts[0] > 0


def test_a_long_title_is_written_smaller() -> None:
    assert fitting("short", 11, 160) == 11
    small = fitting("mamujoco/manysegmentswimmer_10x2", 11, 160)
    assert small < 11
    assert text_width("mamujoco/manysegmentswimmer_10x2", small) <= 160


@pytest.mark.parametrize(
    ("seconds", "options", "expected"),
    [
        (0.05, FilmOptions(), (1, 50)),  # a step of 50 ms is longer than a frame of 40
        (0.008, FilmOptions(), (5, 40)),  # five steps of 8 ms make a frame of 40
        (0.05, FilmOptions(speed=4.0), (3, 40)),  # 3 x 12.5 ms, in hundredths of a second
        (0.1, FilmOptions(), (1, 100)),
        (0.05, FilmOptions(fps=10), (2, 100)),
    ],
)
def test_films_run_in_the_environments_own_time(
    seconds: float, options: FilmOptions, expected: tuple[int, int]
) -> None:
    assert pace(seconds, options) == expected


@pytest.mark.parametrize("name", ["fps", "speed", "max_frames", "width", "episode", "seed"])
def test_options_out_of_range_are_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is -1; expected a number from"):
        FilmOptions(**{name: -1})  # type: ignore[arg-type]


def pictures(count: int) -> list[Image.Image]:
    """Return pictures with a red square that moves."""
    made = []
    for i in range(count):
        picture = Image.new("RGB", (60, 41), "white")
        picture.paste(RED, (4 * i, 10, 4 * i + 8, 18))
        made.append(picture)
    return made


def test_a_gif_has_every_picture_in_order(tmp_path: Path) -> None:
    write_movie(tmp_path / "a.gif", "gif", iter(pictures(7)), 50)
    with Image.open(tmp_path / "a.gif") as movie:
        assert (movie.n_frames, movie.size, movie.info["duration"]) == (7, (60, 41), 50)
        for i in range(7):
            movie.seek(i)
            picture = movie.convert("RGB")
            assert picture.getpixel((4 * i + 4, 14)) == RED
            assert picture.getpixel((4 * i + 12, 14)) == (255, 255, 255)


@pytest.mark.parametrize("name", ["a.mp4", "a.MP4"])
def test_an_mp4_has_every_picture(name: str, tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="needs the extra video")
    write_movie(tmp_path / name, movie_format(Path(name)), iter(pictures(7)), 40)
    with av.open(str(tmp_path / name)) as movie:
        decoded = [frame.to_image() for frame in movie.decode(video=0)]
        assert movie.streams.video[0].average_rate == 25
    assert [picture.size for picture in decoded] == [(60, 40)] * 7
    red, green, _ = decoded[3].getpixel((16, 14))
    assert red > 200 > 60 > green
