"""The labelling page and a browser that lies: whatever it sends, only answers are stored."""

import json
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs import Frame
from marl.preferences.dataset.answers import AnswerLog
from marl.preferences.dataset.footage import EpisodeFrames, write_frames
from marl.preferences.people.session import LABELS, Labelling, LabellingPlan

pytest.importorskip("fastapi", reason="needs the extra people")

from fastapi.testclient import TestClient  # after the check that it is there

from marl.preferences.people.server import make_app  # as above

TOKEN, PORT = "a-token-of-the-test", 8765
CURRENT = "the id of the pair that is shown"
SAID = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.CONFLICT, HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)  # fmt: skip
"""How a request may be turned down."""

TEXTS = st.sampled_from(
    [CURRENT, "", "0-0-1", "0-1-0", "9-9-9", "-1", "[/red]", "<script>", "\x1b[2J", "x" * 70_000]
) | st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
ANSWERS = st.fixed_dictionaries(
    {"id": st.just(CURRENT) | JSON, "choice": st.sampled_from([*LABELS, "best"]) | JSON},
    optional={"seconds": st.sampled_from([0, 1.5, 1e308, -1, 10**400]) | JSON, "more": JSON},
)
GOOD = st.fixed_dictionaries(
    {"id": st.just(CURRENT), "choice": st.sampled_from(sorted(LABELS))},
    optional={"seconds": st.sampled_from([None, 0, 1.5, 1e308])},
)
BODIES = (
    GOOD.map(lambda body: json.dumps(body).encode())
    | st.just(json.dumps({"id": CURRENT}).encode())
    | ANSWERS.map(lambda body: json.dumps(body).encode())
    | JSON.map(lambda body: json.dumps(body).encode())
    | st.binary(max_size=200)
    | st.sampled_from([b"[" * 60_000, b'{"id":' * 9_000, b"1" * 5_000, b"\x00" * 70_000, b"\xff"])
)
CONTENT_TYPES = st.sampled_from(
    ["application/json"] * 5
    + ["application/json; charset=hex", "text/plain", "multipart/form-data", "/"]
)
ORIGINS = st.sampled_from([None, f"http://127.0.0.1:{PORT}"] * 3 + ["null", "http://evil.example"])
METHODS = st.sampled_from(["POST"] * 6 + ["GET", "PUT", "DELETE", "OPTIONS"])
PATHS = st.sampled_from(
    ["/api/answer"] * 5
    + ["/api/undo"] * 2
    + ["/api/question", "/api/frames/1", "/api/frames/NaN", f"/api/frames/{'9' * 30}"]
    + ["/api/frames/%2e%2e%2fanswers", "/api/", "//api/answer", "/%ff"]
)
"""What is usual is likelier, so that some answers are stored."""


@pytest.fixture
def page(tmp_path: Path) -> Iterator[tuple[TestClient, Path]]:
    frame = Frame(shapes=(), view=(0.0, 0.0, 1.0, 1.0), anchors=())
    for number in range(40):
        write_frames(tmp_path, number, EpisodeFrames(steps=(0,), frames=(frame,)))
    labelling = Labelling(tmp_path, "ann", LabellingPlan(pairs=600, repeats=0.1))
    app = make_app(labelling, "a task", TOKEN, PORT)
    headers = {"x-marl-token": TOKEN}
    base = f"http://127.0.0.1:{PORT}"
    with TestClient(app, base_url=base, headers=headers) as client:
        yield client, tmp_path


def stored(folder: Path) -> list[float | None]:
    return [answer.label for answer in AnswerLog(folder / "answers.jsonl").answers()]


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(method=METHODS, path=PATHS, body=BODIES, kind=CONTENT_TYPES, origin=ORIGINS)
def test_only_answers_are_stored(
    page: tuple[TestClient, Path], method: str, path: str, body: bytes, kind: str, origin: str
) -> None:
    client, folder = page
    shown, before = client.get("/api/question").json(), stored(folder)
    body = body.replace(json.dumps(CURRENT).encode(), json.dumps(shown["id"]).encode())
    headers = {"content-type": kind} | ({"origin": origin} if origin else {})
    reply = client.request(method, path, content=body, headers=headers)
    after = stored(folder)
    if reply.status_code == HTTPStatus.OK and path == "/api/answer":
        post: dict[str, Any] = json.loads(body)
        assert post["id"] == shown["id"]
        assert after == [*before, LABELS[post["choice"]]]
    elif reply.status_code == HTTPStatus.OK and path == "/api/undo":
        assert json.loads(body) == {"id": shown["id"]}
        assert after == before[:-1]
    else:
        assert reply.status_code in (HTTPStatus.OK, *SAID)
        assert after == before
    if path.startswith("/api/frames/1"):
        return
    assert isinstance(reply.json(), dict)  # a sentence, or what to show next
    assert len(reply.content) < 10_000


def test_a_body_of_unknown_length_is_not_read(page: tuple[TestClient, Path]) -> None:
    client, folder = page

    def chunks() -> Iterator[bytes]:
        yield b" "

    for sent in ({"content": chunks()}, {"content": b"x", "headers": {"content-length": "9" * 99}}):
        reply = client.post("/api/answer", **sent)  # type: ignore[arg-type]
        assert reply.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        assert reply.json() == {"refused": "what is sent here is no answer"}
    assert stored(folder) == []
