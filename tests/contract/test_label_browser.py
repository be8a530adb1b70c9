"""The labelling page in a real browser: Playwright drives Debian's Chromium, without a window.

Without them these tests are skipped, or fail where MARL_REQUIRE_BROWSER=1 says that they must run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from envs import Frame
from envs.frames import Caption, Circle, HealthBar, Polygon, Segment, picture_frame
from marl.preferences.dataset.answers import AnswerLog
from marl.preferences.dataset.footage import EpisodeFrames, write_frames

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
MISSING = [name for name in ("fastapi", "uvicorn", "playwright") if find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("chromium")

pytestmark = pytest.mark.skipif(
    bool(MISSING) and os.environ.get("MARL_REQUIRE_BROWSER") != "1",
    reason=f"needs {', '.join(MISSING)}",
)

KEYS = {"ArrowLeft": 1.0, "ArrowRight": 0.0, "ArrowDown": 0.5, "s": None}


def moment(number: int, step: int) -> Frame:
    """Return a frame of every kind of shape; its view follows the disc."""
    x = float(step) / (number + 2)
    return Frame(
        shapes=(
            Segment(start=(-9.0, 0.0), end=(9.0, 0.0), colour="#c2beb4"),
            Segment(start=(x, 0.0), end=(x, 0.6), colour="#3f7fbf", width=0.1),
            Circle(centre=(x, 0.8), radius=0.2, colour="#3f7fbf"),
            Circle(centre=(1.0, 0.2), radius=0.2, colour="#2f9e62", filled=False),
            Polygon(points=((-1.0, 0.0), (-0.5, 0.5), (0.0, 0.0)), colour="#d9d5cc"),
            Caption(position=(0.0, -0.3), text=f"episode {number}"),
            HealthBar(position=(x, 1.2), width=0.5, share=1 - step / 12, colour="#2f9e62"),
        ),
        view=(x - 2.0, -1.0, x + 2.0, 2.0),
        anchors=(None,),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of twelve episodes of different lengths."""
    for number in range(12):
        steps = tuple(range(6 + number % 3))
        frames = tuple(moment(number, step) for step in steps)
        write_frames(tmp_path, number, EpisodeFrames(steps=steps, frames=frames))
    return tmp_path


class Server:
    """`marl label` in a process of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        arguments = ["label", "--dataset", str(folder), "--name", "ann", "--no-open", *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from marl.cli import main; main()", *arguments],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        printed = re.search(r"http://127\.0\.0\.1:\d+/#\S+", self.process.stdout.readline())
        assert printed is not None
        self.address = printed.group()

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    """Servers to end with the test."""
    started: list[Server] = []
    yield started
    for server in started:
        server.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser without a window."""
    if MISSING:
        pytest.fail(f"MARL_REQUIRE_BROWSER=1, but there is no {', '.join(MISSING)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Person:
    """Presses keys on pages, and remembers which pair was on the screen at each."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.random = Random(5)
        self.errors: list[str] = []
        self.pressed: list[tuple[int, int, float | None]] = []

    def open(self, address: str) -> Any:
        """Return a tab that shows a page, once a pair is on it."""
        tab = self.context.new_page()
        tab.on("pageerror", lambda error: self.errors.append(str(error)))
        tab.goto(address)
        shown(tab)
        return tab

    def label(self, tab: Any, count: int) -> None:
        """Answer so many pairs by keyboard."""
        for _ in range(count):
            key = self.random.choice(list(KEYS))
            pair = shown(tab)
            _, first, second = pair.split("-")
            self.pressed.append((int(first), int(second), KEYS[key]))
            tab.keyboard.press(key)
            leave(tab, pair)


def shown(tab: Any, wanted: str = "[data-id]") -> str:
    """Return the id of the pair on the screen, once it is one that is wanted."""
    pair = tab.wait_for_selector(f"#pair:not([hidden]){wanted}", timeout=10_000)
    found: str = pair.get_attribute("data-id")
    return found


def leave(tab: Any, pair: str) -> None:
    """Wait until another pair, or none, is on the screen."""
    tab.wait_for_selector(f"#pair:not([data-id='{pair}']), #pair[hidden]", state="attached")


def stored(folder: Path) -> list[tuple[int, int, float | None]]:
    log = AnswerLog(folder / "answers.jsonl")
    return [(answer.first, answer.second, answer.label) for answer in log.answers()]


def test_thirty_pairs_with_reloads_a_second_tab_and_a_killed_server(
    folder: Path, browser: Any, servers: list[Server]
) -> None:
    person = Person(browser.new_context())
    servers.append(Server(folder, "--pairs", "30"))
    tab = person.open(servers[0].address)
    person.label(tab, 8)

    before = shown(tab)
    tab.reload()
    assert shown(tab) == before
    person.label(tab, 4)

    second = person.open(servers[0].address)
    assert shown(second) == shown(tab)
    stale = shown(tab)
    person.label(second, 4)
    assert shown(tab) == stale
    tab.keyboard.press("ArrowLeft")  # to a pair that the other tab has answered
    leave(tab, stale)
    assert shown(tab) == shown(second)
    assert "answered elsewhere" in tab.inner_text("#status")
    assert stored(folder) == person.pressed
    person.label(tab, 4)

    before = shown(tab)
    servers[0].kill()
    tab.keyboard.press("ArrowRight")
    tab.wait_for_selector("#status.alarm", timeout=10_000)
    assert "server does not answer" in tab.inner_text("#status")
    assert stored(folder) == person.pressed
    servers.append(Server(folder, "--pairs", "30"))
    tab = person.open(servers[1].address)
    assert shown(tab) == before
    person.label(tab, 5)
    tab.reload()
    person.label(tab, 4)
    assert tab.inner_text("#count") == "29 of 30"
    person.label(tab, 1)

    tab.wait_for_selector("#message:has-text('All done')")
    tab.keyboard.press("ArrowLeft")
    assert stored(folder) == person.pressed
    assert len(person.pressed) == 30
    assert len((folder / "answers.jsonl").read_text().splitlines()) == 30
    assert person.errors == []


def test_undo_player_and_focus_by_keyboard_alone(
    folder: Path, browser: Any, servers: list[Server]
) -> None:
    person = Person(browser.new_context())
    servers.append(Server(folder))
    tab = person.open(servers[0].address)
    assert tab.is_disabled("#undo")
    person.label(tab, 2)
    *_, (first, second, _) = person.pressed
    tab.keyboard.press("u")
    shown(tab, f"[data-id$='-{first}-{second}']")
    assert stored(folder) == person.pressed[:1]
    tab.keyboard.press("Backspace")
    tab.wait_for_selector("#count:has-text('0 of')")
    assert stored(folder) == []

    tab.keyboard.press(" ")
    assert tab.inner_text("#play-text") == "Play"  # it was playing by itself
    for _ in range(20):
        tab.keyboard.press(",")
    assert tab.inner_text("#stage-first .step").startswith("step 1 of")
    tab.keyboard.press(".")
    assert tab.inner_text("#stage-first .step").startswith("step 2 of")

    tab.focus("#scrub")
    tab.keyboard.press("End")  # a focused slider keeps its own keys
    tab.keyboard.press("ArrowLeft")
    assert stored(folder) == []
    tab.focus("[data-choice=tie]")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#count:has-text('1 of')")
    assert [label for *_, label in stored(folder)] == [0.5]
    assert tab.get_attribute("#status", "aria-live") == "polite"
    assert person.errors == []


def test_both_episodes_are_drawn_and_move(
    folder: Path, browser: Any, servers: list[Server]
) -> None:
    person = Person(browser.new_context())
    servers.append(Server(folder))
    tab = person.open(servers[0].address)
    picture = "side => document.querySelector(`#stage-${side} canvas`).toDataURL()"
    tab.keyboard.press(" ")
    pictures = []
    for key in (",", "."):
        for _ in range(12):
            tab.keyboard.press(key)
        pictures.append([tab.evaluate(picture, side) for side in ("first", "second")])
    (first_start, second_start), (first_end, second_end) = pictures
    assert len({first_start, second_start, first_end, second_end}) == 4


def test_own_pictures_are_shown_and_what_better_means_is_asked(
    tmp_path: Path, browser: Any, servers: list[Server]
) -> None:
    spec: Any = SimpleNamespace(num_agents=1)
    for number in range(2):
        greens = [np.full((30, 40, 3), [0, 40 + 200 * number, 0], np.uint8)] * 2
        frames = tuple(picture_frame(spec, green) for green in greens)
        write_frames(tmp_path, number, EpisodeFrames(steps=(0, 1), frames=frames))
    person = Person(browser.new_context())
    servers.append(Server(tmp_path))
    tab = person.open(servers[0].address)
    shade = (
        "side => { const canvas = document.querySelector(`#stage-${side} canvas`);"
        "const at = [canvas.width / 2, canvas.height / 2, 1, 1];"
        "return canvas.getContext('2d').getImageData(...at).data[1]; }"
    )
    greens = sorted(tab.evaluate(shade, side) for side in ("first", "second"))
    assert abs(greens[0] - 40) <= 8
    assert abs(greens[1] - 240) <= 8
    tab.fill("#task", "Be green, skipping nothing.")  # letters are no answers there
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#title:has-text('Be green, skipping nothing.')")
    assert tab.is_hidden("#better")
    assert stored(tmp_path) == []
    tab.keyboard.press("b")
    tab.wait_for_selector("#message:has-text('All done')")
    (only,) = AnswerLog(tmp_path / "answers.jsonl").answers()
    assert only.both_bad
    assert person.errors == []


def test_a_page_without_the_token_shows_nothing(
    folder: Path, browser: Any, servers: list[Server]
) -> None:
    servers.append(Server(folder))
    tab = browser.new_context().new_page()
    tab.goto(servers[0].address.partition("#")[0])
    tab.wait_for_selector("#message:has-text('not open any more')")
    assert tab.is_hidden("#pair")
    tab.keyboard.press("ArrowLeft")
    assert stored(folder) == []


def test_ctrl_c_ends_it_and_says_where_the_answers_are(
    folder: Path, browser: Any, servers: list[Server]
) -> None:
    person = Person(browser.new_context())
    servers.append(Server(folder))
    tab = person.open(servers[0].address)
    person.label(tab, 3)
    servers[0].process.send_signal(signal.SIGINT)
    said, _ = servers[0].process.communicate(timeout=20)
    assert servers[0].process.returncode == 0
    assert f"3 answers of ann in {folder / 'answers.jsonl'}" in said
