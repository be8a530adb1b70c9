"""The server of the labelling page: who may ask it what, and what it stores."""

import json
from pathlib import Path
from typing import Any

import pytest

from envs import Frame
from envs.frames import Circle
from marl.preferences.dataset.answers import Answer, AnswerLog, now
from marl.preferences.dataset.footage import EpisodeFrames, frames_path, write_frames
from marl.preferences.people.session import Labelling, LabellingPlan, Training

pytest.importorskip("fastapi", reason="needs the extra people")

from fastapi.testclient import TestClient  # after the check that it is there

from marl.preferences.people.server import make_app  # as above

TOKEN = "a-token-of-the-test"
HEADERS = {"x-marl-token": TOKEN}
PORT = 8765


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset of five episodes, each a disc as large as its number."""
    for number in range(5):
        disc = Circle(centre=(0.0, 0.0), radius=float(number), colour="#000000")
        frame = Frame(shapes=(disc,), view=(-9.0, -9.0, 9.0, 9.0), anchors=())
        write_frames(tmp_path, number, EpisodeFrames(steps=(0,), frames=(frame,)))
    return tmp_path


def client(folder: Path, *, title: str = "a task", **headers: str) -> TestClient:
    """Return a page of a new server, as a browser that opened it would ask."""
    labelling = Labelling(folder, "ann", LabellingPlan(pairs=8, repeats=0.0))
    app = make_app(labelling, title, TOKEN, PORT)
    base = f"http://127.0.0.1:{PORT}"
    return TestClient(app, base_url=base, headers={**HEADERS, **headers})


def answers(folder: Path) -> list[float | None]:
    return [answer.label for answer in AnswerLog(folder / "answers.jsonl").answers()]


def answer(page: TestClient, shown: dict[str, Any], choice: str, **more: Any) -> Any:
    return page.post("/api/answer", json={"id": shown["id"], "choice": choice, **more})


def test_answers_are_stored_in_turn_and_the_next_pair_comes_back(folder: Path) -> None:
    page = client(folder)
    shown = page.get("/api/question").json()
    assert (shown["status"], shown["answered"], shown["goal"]) == ("ask", 0, 8)
    seen = []
    for count, choice in enumerate(("first", "second", "tie", "skip"), start=1):
        seen.append(shown["episodes"])
        reply = answer(page, shown, choice, seconds=1.5)
        assert reply.status_code == 200
        shown = reply.json()
        assert shown["answered"] == count == len(answers(folder))
    assert answers(folder) == [1.0, 0.0, 0.5, None]
    lines = map(json.loads, (folder / "answers.jsonl").read_text().splitlines())
    assert [[line["first"], line["second"]] for line in lines] == seen


def test_two_bad_episodes_are_a_tie_that_says_so(folder: Path) -> None:
    page = client(folder)
    for choice in ("bad", "tie"):
        answer(page, page.get("/api/question").json(), choice)
    first, second = AnswerLog(folder / "answers.jsonl").answers()
    assert (first.label, first.both_bad) == (0.5, True)
    assert (second.label, second.both_bad) == (0.5, False)


def test_what_better_means_is_kept_for_all_who_label(folder: Path) -> None:
    page = client(folder)
    assert page.get("/api/question").json()["task"] == ""
    assert page.post("/api/task", json={"task": "Meet,\nand soon."}).json()["task"] == (
        "Meet,\\nand soon."
    )
    assert client(folder).get("/api/question").json()["task"] == "Meet,\\nand soon."
    assert page.post("/api/task", json={"task": ""}).status_code == 422
    assert page.post("/api/task", json={"task": "x" * 301}).status_code == 422


def test_the_page_knows_how_training_stands(folder: Path) -> None:
    states: list[Training] = ["running", "ended"]
    plan = LabellingPlan(asked_by_run=True, repeats=0.0)
    labelling = Labelling(folder, "ann", plan, training=lambda: states[0])
    app = make_app(labelling, "a run", TOKEN, PORT)
    page = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", headers=HEADERS)
    shown = page.get("/api/question").json()
    assert (shown["status"], shown["training"]) == ("waiting", "running")
    del states[0]
    assert page.get("/api/question").json()["training"] == "ended"


def test_the_page_knows_what_the_learned_reward_understands(folder: Path) -> None:
    """Of two answers to a pair, the reward is asked about the first, whoever gave it."""
    plan = LabellingPlan(repeats=0.0)
    labelling = Labelling(folder, "ann", plan, learned=lambda answers: (1, 3 * len(answers)))
    app = make_app(labelling, "a run", TOKEN, PORT)
    page = TestClient(app, base_url=f"http://127.0.0.1:{PORT}", headers=HEADERS)
    shown = page.get("/api/question").json()
    assert (shown["understood"], shown["decided"]) == (1, 0)
    bob = Answer(first=shown["episodes"][0], second=shown["episodes"][1], label=1.0,
                 source="person:bob", at=now())  # fmt: skip
    labelling.log.append(bob)
    shown = answer(page, shown, "first").json()
    assert shown["decided"] == 0
    assert answer(page, shown, "second").json()["decided"] == 3


def test_the_frames_are_those_of_the_set(folder: Path) -> None:
    content = client(folder).get("/api/frames/3").json()
    assert content["steps"] == [0]
    assert content["frames"][0]["shapes"][0]["radius"] == 3.0


def test_nothing_tells_the_reward(folder: Path) -> None:
    page = client(folder)
    told = page.get("/api/question").text + page.get("/api/frames/3").text
    assert "return" not in told
    # `reward_places` are spots in the picture that `marl watch` uses; nothing else has the word.
    assert told.replace("reward_places", "").count("reward") == 0


@pytest.mark.parametrize("token", ["", "wrong", TOKEN[:-1], TOKEN + "x", "\u00e9"])
@pytest.mark.parametrize("path", ["/api/question", "/api/frames/1"])
def test_a_wrong_token_is_refused(folder: Path, token: str, path: str) -> None:
    page = client(folder)
    headers = {"x-marl-token": token.encode("latin-1")}
    reply = page.get(path, headers=headers)
    assert reply.status_code == 403
    assert "token is missing or of an earlier server" in reply.json()["refused"]
    shown = page.get("/api/question").json()
    body = {"id": shown["id"], "choice": "first"}
    assert page.post("/api/answer", json=body, headers=headers).status_code == 403
    assert answers(folder) == []


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "http://127.0.0.1:1", f"https://127.0.0.1:{PORT}", "null"]
)
def test_posts_from_other_origins_are_refused_even_with_the_token(
    folder: Path, origin: str
) -> None:
    page = client(folder)
    shown = page.get("/api/question").json()
    body = {"id": shown["id"], "choice": "first"}
    for path in ("/api/answer", "/api/undo"):
        reply = page.post(path, json=body, headers={"origin": origin})
        assert reply.status_code == 403
        assert "may not ask here" in reply.json()["refused"]
    assert answers(folder) == []


def test_what_a_browser_calls_cross_site_is_refused(folder: Path) -> None:
    page = client(folder)
    for site in ("cross-site", "same-site"):
        reply = page.get("/api/question", headers={"sec-fetch-site": site})
        assert reply.status_code == 403
    assert page.get("/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link


@pytest.mark.parametrize(
    "host", ["evil.example", f"evil.example:{PORT}", "127.0.0.1", "127.0.0.1:1"]
)
@pytest.mark.parametrize("path", ["/", "/label.js", "/api/question"])
def test_a_rebound_name_is_refused(folder: Path, host: str, path: str) -> None:
    reply = client(folder).get(path, headers={"host": host})
    assert reply.status_code == 421
    assert f"this server is not {host}" in reply.json()["refused"]


def test_the_served_origin_may_post(folder: Path) -> None:
    page = client(folder, origin=f"http://127.0.0.1:{PORT}")
    assert answer(page, page.get("/api/question").json(), "first").status_code == 200


def test_the_page_and_its_parts_are_served_with_strict_headers(folder: Path) -> None:
    page = client(folder)
    for path in ("/", "/label.js", "/ask.js", "/player.js", "/draw.js", "/label.css", "/icon.svg"):
        reply = page.get(path)
        assert reply.status_code == 200
        assert "default-src 'self'" in reply.headers["content-security-policy"]
        assert reply.headers["cache-control"] == "no-store"
        assert TOKEN not in reply.text
    for path in ("/docs", "/openapi.json", "/../server.py", "/..%2fserver.py"):
        assert page.get(path).status_code == 404


def test_a_stale_answer_gets_409_and_the_current_pair(folder: Path) -> None:
    one = client(folder)
    shown = one.get("/api/question").json()
    current = answer(one, shown, "first").json()
    other = answer(one, shown, "second")  # what a second tab would send
    assert other.status_code == 409
    assert other.json() == current
    assert answers(folder) == [1.0]


def test_an_answer_stored_before_a_kill_is_not_stored_again(folder: Path) -> None:
    page = client(folder)
    shown = page.get("/api/question").json()
    answer(page, shown, "first")
    restarted = client(folder)  # the page never saw the reply and asks the new server
    reply = answer(restarted, shown, "first")
    assert reply.status_code == 409
    assert reply.json()["answered"] == 1
    assert answers(folder) == [1.0]


def test_a_pair_that_was_open_at_a_kill_can_be_answered_after_it(folder: Path) -> None:
    shown = client(folder).get("/api/question").json()
    assert answer(client(folder), shown, "tie").status_code == 200
    assert answers(folder) == [0.5]


def test_undo_withdraws_one_answer_and_shows_its_pair(folder: Path) -> None:
    page = client(folder)
    first = page.get("/api/question").json()
    second = answer(page, first, "first").json()
    reply = page.post("/api/undo", json={"id": second["id"]})
    assert reply.status_code == 200
    assert reply.json()["episodes"] == first["episodes"]
    assert answers(folder) == []
    assert page.post("/api/undo", json={"id": second["id"]}).status_code == 409


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "x"},
        {"id": "x", "choice": "best"},
        {"id": 3, "choice": "first"},
        {"id": "x", "choice": "first", "label": 1},
        {"id": "x", "choice": "first", "seconds": -1},
    ],
)
def test_a_malformed_answer_is_refused(folder: Path, body: dict[str, Any]) -> None:
    assert client(folder).post("/api/answer", json=body).status_code == 422
    assert answers(folder) == []


def test_missing_and_damaged_frames_say_so_and_the_pair_can_be_skipped(folder: Path) -> None:
    page = client(folder)
    shown = page.get("/api/question").json()
    frames_path(folder, shown["episodes"][0]).write_bytes(b"damaged")
    reply = page.get(f"/api/frames/{shown['episodes'][0]}")
    assert reply.status_code == 500
    assert "is damaged" in reply.json()["error"]
    assert answer(page, shown, "skip").status_code == 200


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"id": "x", "choice": "first", "seconds": NaN}', "seconds: Input should be a finite"),
        ('{"id": "x", "choice": "first", "seconds": -Infinity}', "seconds: Input should be "),
        ('{"id": "x", "choice": NaN}', "choice: Input should be 'first'"),
        ('{"id": "\\ud800", "choice": "none"}', "choice: Input should be 'first'"),
    ],
)
def test_what_is_no_answer_gets_a_sentence(folder: Path, body: str, words: str) -> None:
    page = client(folder)
    reply = page.post("/api/answer", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    assert words in reply.json()["error"]
    assert answers(folder) == []


@pytest.mark.parametrize("body", ["[" * 60_000, "1" * 5000, "\xff"])
def test_what_is_no_json_is_refused(folder: Path, body: str) -> None:
    headers = {"content-type": "application/json"}
    reply = client(folder).post("/api/answer", content=body.encode("latin-1"), headers=headers)
    assert reply.status_code == 400
    assert "There was an error parsing the body" in reply.json()["detail"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/api/frames/77", 404, "episode 77 was not filmed"),
        ("/api/frames/-1", 422, "number: Input should be greater than or equal to 0"),
        (f"/api/frames/1{'0' * 25}", 422, "number: Input should be less than or equal to"),
        (f"/api/frames/1{'0' * 4400}", 422, "number: Unable to parse input string as an integer"),
        ("/api/frames/%ED%A0%80", 422, "number: Input should be a valid integer"),
        ("/%00", 404, "there is no such page"),
        ("/%0a", 404, "there is no such page"),
    ],
)
def test_what_is_not_there_gets_a_sentence(
    folder: Path, path: str, status: int, words: str
) -> None:
    reply = client(folder).get(path)
    assert reply.status_code == status
    assert words in reply.text


@pytest.mark.parametrize("path", ["/", "/api/question", "/label.js"])
def test_a_websocket_is_refused_in_words(folder: Path, path: str) -> None:
    headers = {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-version": "13"}
    reply = client(folder).get(path, headers=headers)
    assert reply.status_code == 400
    assert reply.json()["refused"] == "this server takes no other protocol than HTTP"


def test_names_that_no_encoding_has_are_shown_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "a\udcff"
    frame = Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=())
    for number in range(2):
        write_frames(folder, number, EpisodeFrames(steps=(0,), frames=(frame,)))
    page = client(folder, title=folder.name)
    assert page.get("/api/question").json()["title"] == r"a\udcff"
    frames_path(folder, 1).write_bytes(b"damaged")
    reply = page.get("/api/frames/1")
    assert reply.status_code == 500
    assert r"a\udcff/frames/000001.json.gz is damaged" in reply.json()["error"]


def test_our_own_fault_is_said_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(*_: object) -> None:
        raise ZeroDivisionError

    page = client(folder)
    monkeypatch.setattr(Labelling, "question", fault)
    quiet = TestClient(page.app, page.base_url, headers=page.headers, raise_server_exceptions=False)
    reply = quiet.get("/api/question")
    assert reply.status_code == 500
    assert "marl label has failed (ZeroDivisionError)" in reply.json()["error"]


def test_a_log_damaged_in_the_middle_is_shown_as_an_error(folder: Path) -> None:
    page = client(folder)
    answer(page, page.get("/api/question").json(), "first")
    log = folder / "answers.jsonl"
    log.write_text("damaged\n" + log.read_text())
    reply = client(folder).get("/api/question")
    assert reply.status_code == 500
    assert "answers.jsonl, line 1 of 2" in reply.json()["error"]


def test_a_full_disk_is_said_and_the_pair_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = client(folder)
    shown = page.get("/api/question").json()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(AnswerLog, "append", full)
    reply = answer(page, shown, "first")
    assert reply.status_code == 500
    assert "No space left on device" in reply.json()["error"]
    monkeypatch.undo()
    assert answer(page, shown, "first").status_code == 200
    assert answers(folder) == [1.0]
