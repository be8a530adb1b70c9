"""`marl demonstrate`: a person's episodes, what its page takes, and what is learned from them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import make_env
from envs.frames import Picture
from marl import load
from marl.commands import demonstrate as command
from marl.preferences.dataset import PreferenceDataset
from marl.preferences.people.demonstration import Demonstrating
from tests.command_line import run
from tests.teams import team

pytest.importorskip("fastapi", reason="needs the extra people")

from fastapi.testclient import TestClient  # after the check that it is there

from marl.preferences.people.demonstration_server import make_app  # as above
from tests.contract.test_label_browser import CHROMIUM, MISSING  # as above

TOKEN, PORT = "a-token-of-the-test", 8765
Chooser = Callable[[dict[str, Any]], int]


def page_of(session: Demonstrating) -> TestClient:
    """Return the page of a session, as a browser that opened it would ask."""
    base = f"http://127.0.0.1:{PORT}"
    app = make_app(session, "a task", TOKEN, PORT)
    return TestClient(app, base_url=base, headers={"x-marl-token": TOKEN})


def session_of(name: str, folder: Path, **more: Any) -> Demonstrating:
    """Return a session in a new dataset whose agents are all driven."""
    env = make_env(name, 1, **({"workers": more.pop("workers")} if "workers" in more else {}))
    data = PreferenceDataset.create(folder, env.spec, environment=name)
    options = {"episodes": 2, "driven": range(env.spec.num_agents)} | more
    return Demonstrating(env, data, **options)


def test_own_pictures_are_shown(tmp_path: Path) -> None:
    session = session_of("tests.workshop:Workshop", tmp_path / "shown", workers=0)
    (shape,) = session.turn().frame.shapes
    assert isinstance(shape, Picture)
    play(page_of(session))
    assert PreferenceDataset(tmp_path / "shown").numbers() == [0, 1]


def first_move(turn: dict[str, Any]) -> int:
    return int(turn["moves"][0]["action"])


def sent(page: TestClient, path: str, turn: dict[str, Any], **more: Any) -> dict[str, Any]:
    reply = page.post(path, json={"id": turn["id"], **more})
    assert reply.status_code == 200, reply.text
    shown: dict[str, Any] = reply.json()
    return shown


def play(page: TestClient, choose: Chooser = first_move) -> None:
    """Play and keep episodes until enough are kept."""
    turn = page.get("/api/turn").json()
    while turn["status"] != "done":
        if turn["status"] == "over":
            turn = sent(page, "/api/keep", turn)
        else:
            turn = sent(page, "/api/act", turn, action=choose(turn))


@pytest.mark.parametrize("name", ["particles/nav_3", "probe/dying", "probe/masked"])
def test_episodes_are_kept_as_they_were_played(name: str, tmp_path: Path) -> None:
    session = session_of(name, tmp_path / "shown", seed=5)
    play(page_of(session))
    data, env = PreferenceDataset(tmp_path / "shown"), make_env(name, 1)
    assert data.numbers() == [0, 1]
    for number in data.numbers():
        record, step, total = data.episode(number), env.reset(5 + number), 0.0
        assert record.demonstration
        for time in range(record.length):
            assert np.array_equal(record.obs[time], step.obs[0])
            if record.action_mask is not None:
                assert np.array_equal(record.action_mask[time], step.action_mask[0])  # type: ignore[index]
            step = env.step(record.actions[time][None])
            total += float(step.rewards[0])
        assert record.terminated == bool(step.terminated[0])
        assert np.array_equal(record.final_obs, step.final_obs[0])
        assert record.episode_return == pytest.approx(total)


def test_agents_wait_in_turn_and_an_episode_can_be_begun_again(tmp_path: Path) -> None:
    page = page_of(session_of("particles/nav_3", tmp_path / "shown"))
    start = turn = page.get("/api/turn").json()
    assert [move["key"] for move in turn["moves"]] == [
        " ", "ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown",
    ]  # fmt: skip
    seen = []
    for _ in range(6):
        seen.append((turn["step"], turn["agent"]))
        turn = sent(page, "/api/act", turn, action=1)
    assert seen == [(step, f"agent {agent}") for step in (0, 1) for agent in range(3)]
    turn = sent(page, "/api/again", turn)
    assert (turn["step"], turn["agent"]) == (0, "agent 0")
    assert turn["frame"] == start["frame"]
    assert turn["id"] != start["id"]


def test_a_team_drives_the_other_agents(tmp_path: Path) -> None:
    trained = team("particles/nav_3", 0)
    session = session_of(
        "particles/nav_3", tmp_path / "shown", driven=(1,), others=trained, greedy=True, episodes=1
    )
    play(page_of(session), lambda turn: 3)
    record = PreferenceDataset(tmp_path / "shown").episode(0)
    trained.reset(0)
    expected = np.stack([trained.act(obs, greedy=True) for obs in record.obs])
    expected[:, 1] = 3
    assert np.array_equal(record.actions, expected)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/api/act", {"id": "ID", "action": 5}, 422, "agent 0 cannot take action 5 now"),
        ("/api/act", {"id": "ID", "action": -1}, 422, "action: Input should be greater than"),
        ("/api/act", {"id": "ID", "action": 10**400}, 422, "action: Input should be less than"),
        ("/api/act", {"id": "ID", "action": True}, 422, "action: Input should be a valid integer"),
        ("/api/act", {"id": "ID", "action": "1"}, 422, "action: Input should be a valid integer"),
        ("/api/act", {"id": "ID", "action": 1.5}, 422, "action: Input should be a valid integer"),
        ("/api/act", {"id": "ID", "action": 1, "agent": 2}, 422, "agent: Extra inputs are not"),
        ("/api/act", {"id": "ID"}, 422, "action: Field required"),
        ("/api/act", {"id": "0-1-9-0", "action": 1}, 409, "a task"),
        ("/api/keep", {"id": "ID"}, 409, "a task"),  # it is not over
        ("/api/keep", {"id": ["ID"]}, 422, "id: Input should be a valid string"),
        ("/api/again", {"id": "x" * 60_000}, 409, "a task"),
        ("/api/again", {}, 422, "id: Field required"),
    ],
)
def test_what_is_no_move_changes_nothing(
    tmp_path: Path, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    page = page_of(session_of("particles/nav_3", tmp_path / "shown"))
    turn = page.get("/api/turn").json()
    text = json.dumps(body).replace('"ID"', json.dumps(turn["id"]))
    reply = page.post(path, content=text, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert words in reply.text
    assert page.get("/api/turn").json() == turn
    assert PreferenceDataset(tmp_path / "shown").numbers() == []


def test_the_guard_is_that_of_the_labelling_page(tmp_path: Path) -> None:
    page = page_of(session_of("particles/nav_3", tmp_path / "shown"))
    turn = page.get("/api/turn").json()
    body = {"id": turn["id"], "action": 1}
    for headers, status in (
        ({"x-marl-token": "wrong"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"host": "evil.example"}, 421),
    ):
        assert page.post("/api/act", json=body, headers=headers).status_code == status
    assert page.get("/api/turn").json() == turn
    reply = page.get("/demonstrate.html")
    assert reply.status_code == 200
    assert "default-src 'self'" in reply.headers["content-security-policy"]


def test_an_action_sent_twice_counts_once_and_illegal_ones_are_not_offered(tmp_path: Path) -> None:
    page = page_of(session_of("probe/masked", tmp_path / "shown"))
    turn = page.get("/api/turn").json()
    legal = {move["action"] for move in turn["moves"]}
    illegal = sorted(set(range(6)) - legal)
    assert legal
    assert illegal
    body = {"id": turn["id"], "action": illegal[0]}
    assert page.post("/api/act", json=body).status_code == 422
    after = sent(page, "/api/act", turn, action=min(legal))
    again = page.post("/api/act", json={"id": turn["id"], "action": min(legal)})
    assert again.status_code == 409
    assert again.json() == after


def named_cue(turn: dict[str, Any]) -> int:
    """Return the cue that an agent of `probe/coordination` sees: its tallest bar."""
    row = -float(turn["agent"].removeprefix("agent "))
    bars = [shape for shape in turn["frame"]["shapes"] if shape["kind"] == "polygon"]
    tops = [
        bar["points"][2][1]
        for bar in bars
        if bar["points"][0][1] == row and bar["points"][0][0] < 6
    ]
    return int(np.argmax(tops))


def test_a_policy_and_a_reward_are_learned_from_what_was_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 episodes by the command's own session, the optimum of 8 each; then they are imitated."""
    chooser: list[Chooser] = [named_cue]

    def serve(session: Demonstrating, *_: object) -> None:
        play(page_of(session), chooser[0])

    monkeypatch.setattr(command, "serve_demonstration", serve)
    out, task = str(tmp_path / "shown"), "probe/coordination"
    assert run("demonstrate", task, "--out", out, "--episodes", "6") == 0
    assert run("demonstrate", task, "--out", out, "--episodes", "2") == 0  # it gets more
    assert "2 more demonstrations" in capsys.readouterr().out
    data = PreferenceDataset(out)
    records = [data.episode(number) for number in data.numbers()]
    assert [record.episode_return for record in records] == [8.0] * 8
    assert len({record.obs.tobytes() for record in records}) == 8
    fit = ["--steps", "60", "--learning-rate", "0.01", "--holdout-every", "4"]
    assert run("imitate", out, *fit, "--out", str(tmp_path / "fit")) == 0
    assert "8 demonstrations" in capsys.readouterr().out
    assert load(tmp_path / "fit").act(
        np.eye(3, dtype=np.float32)[[1, 1]], greedy=True
    ).tolist() == [1, 1]
    for record in records[:4]:
        data.add_episode(
            type(record)(**{**vars(record), "demonstration": False, "actions": record.actions * 0})
        )
    arguments = ["--demonstrations", "--model", "slf", "--steps", "20", "--holdout-every", "4"]
    assert run("fit-reward", out, *arguments, "--out", str(tmp_path / "reward")) == 0
    assert "8 of them demonstrations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe/continuous_match"], "has continuous actions, and keys choose among discrete"),
        (["probe/composite"], "has composite actions, and keys choose among discrete"),
        (["particles/nav_3", "--agents", "3"], "--agents: got 3, expected 0 to 2"),
        (["particles/nav_3", "--agents", "1"], "nobody drives the rest; name a trained team"),
        (["particles/nav_3", "--greedy"], "--greedy is how --others act"),
        (["particles/nav_3", "--others", "nowhere"], "nowhere"),
        (["particles/nav_2"], "holds episodes of 'particles/nav_3'"),
        (["particles/nav_3", "--episodes", "0"], "--episodes: got 0, expected a number from 1"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    env = make_env("particles/nav_3", 1)
    PreferenceDataset.create(tmp_path / "shown", env.spec, environment="particles/nav_3")
    assert run("demonstrate", *arguments, "--out", str(tmp_path / "shown")) != 0
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


@pytest.mark.skipif(
    bool(MISSING) and os.environ.get("MARL_REQUIRE_BROWSER") != "1",
    reason=f"needs {', '.join(MISSING)}",
)
def test_a_person_plays_by_keyboard_in_a_browser(tmp_path: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder = tmp_path / "shown"
    arguments = ["demonstrate", "particles/nav_1", "--out", str(folder), "--episodes", "1"]
    process = subprocess.Popen(
        [sys.executable, "-c", "from marl.cli import main; main()", *arguments, "--no-open"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        printed = re.search(r"http://\S+", process.stdout.readline())
        assert printed is not None
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab, errors = browser.new_page(), []
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.goto(printed.group())
            keys = ["ArrowUp", "ArrowLeft", " ", "ArrowDown", "ArrowRight"] * 5
            for step, key in enumerate(keys):
                tab.wait_for_selector(f"#turn[data-id='0-1-{step}-0']:not([hidden])")
                tab.keyboard.press(key)
            tab.wait_for_selector("#over:not([hidden])")
            assert tab.inner_text("#step").startswith("return -")
            tab.keyboard.press("ArrowUp")  # the episode is over
            tab.keyboard.press("Enter")
            tab.wait_for_selector("#message:has-text('All done')")
            assert errors == []
            browser.close()
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=20)
        assert "1 more demonstrations" in said
    finally:
        process.kill()
        process.wait()
    record = PreferenceDataset(folder).episode(0)
    assert record.actions[:, 0].tolist() == [3, 2, 0, 4, 1] * 5
