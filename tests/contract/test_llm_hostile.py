"""A language model's server that says whatever it likes: it costs answers, never the run.

Each kind of reply is one counted fault of its question, and what is kept of it is small. Real
HTTP on loopback.
"""

import gzip
import logging
import math
import tracemalloc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from marl.config import ConfigError
from marl.config.preferences import LlmConfig
from marl.preferences.llm import LabellerWarning, LlmLabeller
from tests.llm_cases import FakeClock, make, outcomes, pairs_of
from tests.llm_faults import GARBLED
from tests.llm_server import ModelServer, body_of, changed, edited, saying, status, whole

MIB = 2**20


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def label(labeller: LlmLabeller, first: float = 1.0, second: float = 2.0) -> float:
    """Return the label of a pair with these returns; warnings are looked at elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LabellerWarning)
        return float(labeller(pairs_of([first], [second]))[0])


def kept(folder: Path) -> bytes:
    """Return everything in the files of a folder."""
    return b"".join(path.read_bytes() for path in folder.iterdir())


@pytest.mark.parametrize("kind", GARBLED)
def test_a_garbled_reply_is_one_counted_fault(
    kind: str, server: ModelServer, tmp_path: Path
) -> None:
    labeller = make(server.base_url, tmp_path, attempts=1, concurrency=1, timeout=5.0)
    label(labeller, 5.0, 6.0)
    server.fault = GARBLED[kind]
    with pytest.warns(LabellerWarning, match=r"no answer to any of 1 pairs .garbled: .*goes on"):
        assert math.isnan(labeller(pairs_of([1.0], [2.0]))[0])
    # One for each of the pair's two questions; what they may have cost is an estimate.
    assert labeller.metrics()["llm_fault_garbled"] == 2.0
    assert labeller.metrics()["llm_abstained_garbled"] == 1.0
    assert labeller.metrics()["llm_spent_tokens"] < 10_000
    assert outcomes(tmp_path)[-2:] == ["garbled", "garbled"]
    server.fault = None
    assert not math.isnan(label(labeller))
    labeller.close()
    assert len(kept(tmp_path)) < 200_000
    # The next process finds the cache as it should be.
    again = make(server.base_url, tmp_path, offline=True)
    assert not math.isnan(label(again))


@pytest.mark.parametrize("code", [200, 500])
def test_a_bomb_is_not_unpacked(code: int, server: ModelServer, tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(100 * MIB), compresslevel=1)
    labeller = make(server.base_url, tmp_path, attempts=1, concurrency=1, timeout=5.0)
    label(labeller, 5.0, 6.0)
    server.fault = body_of(bomb, headers={"Content-Encoding": "gzip"}, code=code)
    tracemalloc.start()
    try:
        assert math.isnan(label(labeller))
        assert tracemalloc.get_traced_memory()[1] < 20 * MIB
    finally:
        tracemalloc.stop()
    assert labeller.metrics()["llm_fault_garbled"] == 2.0


def test_a_compressed_reply_is_read(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path)
    label(labeller, 5.0, 6.0)
    reply = b'{"choices": [{"message": {"content": "Good"}}]}'
    server.fault = body_of(gzip.compress(reply), headers={"Content-Encoding": "gzip"})
    label(labeller)
    assert outcomes(tmp_path)[-1] == "no_logprobs"


@pytest.mark.parametrize("charset", ["hex", "utf-16", "no-such"])
def test_json_is_utf_8_whatever_its_charset(
    charset: str, server: ModelServer, tmp_path: Path
) -> None:
    labeller = make(server.base_url, tmp_path)
    server.fault = edited(bytes, kind=f"json; charset={charset}")
    assert not math.isnan(label(labeller))
    server.fault = body_of(b'{"error": 1}', f"json; charset={charset}", code=500)
    assert math.isnan(label(labeller, 7.0, 8.0))
    assert labeller.metrics()["llm_fault_server"] == 2.0


@pytest.mark.parametrize(
    "models",
    [b"[" * 100_000, b'{"data": 5}', b'{"data": [{"id": 7}]}', b" " * 20 * MIB, b'{"data": "x"}'],
    ids=["nested", "no list", "no name", "20 MiB", "a text"],
)
def test_a_malformed_list_of_models_is_passed_over(
    models: bytes, server: ModelServer, tmp_path: Path
) -> None:
    server.models = models
    labeller = make(server.base_url, tmp_path)
    labeller.start()
    assert not math.isnan(label(labeller))


def test_a_question_goes_to_no_other_server(server: ModelServer, tmp_path: Path) -> None:
    with ModelServer() as other:
        elsewhere = f"{other.base_url}/chat/completions"
        labeller = make(server.base_url, tmp_path, concurrency=1)
        label(labeller, 5.0, 6.0)
        for code in (301, 302, 303, 307, 308):
            server.faults.append(status(code, {"Location": elsewhere}))
            label(labeller, 10.0 + code, 20.0 + code)
        assert other.asked == []
        labeller.close()
        server.faults, server.fault = [], status(307, {"Location": elsewhere})
        first = make(server.base_url, tmp_path / "first")
        with pytest.raises(ConfigError, match=rf"redirected: status 307 to {elsewhere}; no redi"):
            first.start()
        assert other.asked == []


def test_no_cookie_is_kept(server: ModelServer, tmp_path: Path) -> None:
    labeller = make(server.base_url, tmp_path, attempts=1)
    server.fault = status(500, {"Set-Cookie": "who=you; Path=/"})
    label(labeller)
    server.fault = None
    label(labeller, 5.0, 6.0)
    assert server.cookies == set()


def test_a_server_that_comes_up_with_another_model_ends_no_run(tmp_path: Path) -> None:
    with ModelServer() as server:
        address, port = server.base_url, int(server.base_url.split(":")[2].split("/")[0])
    clock = FakeClock()
    labeller = make(address, tmp_path, clock, preflight="refuse")
    with pytest.warns(LabellerWarning, match="not ready yet"):
        labeller.start()
    with ModelServer(port=port) as server:
        server.models = ["another"]
        clock.now += 61.0
        with pytest.warns(LabellerWarning, match=r"unfit: .* has no 'stand-in'; it lists another"):
            assert math.isnan(labeller(pairs_of([1.0], [2.0]))[0])
        assert labeller.metrics()["llm_abstained_unfit"] == 1.0
        server.models = ["stand-in"]
        clock.now += 61.0
        assert not math.isnan(label(labeller))


def test_a_model_found_unfit_while_the_run_goes_on_ends_no_run(tmp_path: Path) -> None:
    with ModelServer() as server:
        address, port = server.base_url, int(server.base_url.split(":")[2].split("/")[0])
    clock = FakeClock()
    labeller = make(address, tmp_path, clock, preflight="refuse")
    with pytest.warns(LabellerWarning, match="not ready yet"):
        labeller.start()
    with ModelServer(port=port) as server:
        same = [{"token": "Good", "logprob": -0.7}, {"token": "Bad", "logprob": -0.7}]
        server.fault = changed(logprobs={"content": [{"token": "Good", "top_logprobs": same}]})
        clock.now += 61.0
        with pytest.warns(LabellerWarning, match="unfit: .*fails the preflight"):
            assert math.isnan(labeller(pairs_of([1.0], [2.0]))[0])


@pytest.mark.parametrize(
    "address",
    [
        "http://me:hunter2@127.0.0.1:9/v1",
        "http://hunter2@127.0.0.1:9/v1",
        "http://127.0.0.1:9/v1?key=hunter2",
        "http://127.0.0.1:9/v1#hunter2",
        "http:me:hunter2@127.0.0.1:9/v1",
    ],
)
def test_an_address_holds_no_secret(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"^preferences\.llm\.base_url: holds a user") as caught:
        LlmConfig(base_url=address)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", address)
    monkeypatch.setenv("STAND_IN_KEY", "some-key")
    with pytest.raises(ConfigError, match=r"variable OPENAI_BASE_URL: holds a user") as caught:
        make("", tmp_path)
    assert "hunter2" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_environment_may_name_a_server_that_needs_no_key(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", f"{server.base_url}/")
    assert not math.isnan(label(make("", tmp_path)))


def test_fewer_log_probabilities_before_votes(server: ModelServer, tmp_path: Path) -> None:
    server.most_logprobs = 5
    labeller = make(server.base_url, tmp_path, preflight="refuse")
    with pytest.warns(LabellerWarning, match="asked by the log-probabilities of the 5 likeliest"):
        labeller.start()
    assert "asked by the log-probabilities of the 5 likeliest tokens" in str(labeller.figures)
    before = len(server.asked)
    assert not math.isnan(label(labeller))
    assert len(server.asked) == before + 2
    assert server.asked[-1]["top_logprobs"] == 5
    assert labeller.metrics()["llm_top_logprobs"] == 5.0


def test_votes_are_told(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        labeller = make(server.base_url, tmp_path, preflight="refuse")
        with pytest.warns(LabellerWarning, match="asked by 5 votes a question under a JSON schema"):
            labeller.start()
        assert labeller.metrics()["llm_top_logprobs"] == 0.0


def test_a_model_that_thinks_until_its_tokens_are_out_is_told(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        labeller = make(server.base_url, tmp_path, preflight="refuse", max_tokens=48)
        server.fault = saying(None, finish="length")
        with pytest.raises(ConfigError, match=r"after 48 tokens; raise preferences\.llm\.max_tok"):
            labeller.start()
        labeller.close()
        assert "nan" not in str(labeller.figures)
        labeller = make(server.base_url, tmp_path, votes=1, seed=5)
        server.fault = None
        label(labeller, 5.0, 6.0)
        server.fault = saying("<think>Let me see", finish="length")
        assert math.isnan(label(labeller))
        # It would run out of them again, so that no reminder is sent.
        assert labeller.metrics()["llm_fault_length"] == 2.0
        assert outcomes(tmp_path)[-2:] == ["answered", "answered"]


def test_content_in_parts_is_read(tmp_path: Path) -> None:
    with ModelServer(logprobs=False) as server:
        labeller = make(server.base_url, tmp_path, votes=1)
        label(labeller, 5.0, -6.0)
        parts: Any = [{"type": "text", "text": "Go"}, {"type": "text", "text": "od"}]
        server.fault = saying(parts)
        label(labeller)
        # Good and good again: no answer, since one is as good as the other.
        assert labeller.metrics()["llm_abstained_margin"] == 1.0


def test_the_key_is_in_no_log_and_no_file_even_if_it_is_sent_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "very-secret-key"
    monkeypatch.setenv("STAND_IN_KEY", key)
    caplog.set_level(logging.DEBUG)
    with ModelServer(logprobs=False) as server, warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        labeller = make(server.base_url, tmp_path, votes=1, attempts=1, concurrency=1)
        labeller(pairs_of([5.0], [6.0]))
        assert "HTTP Request" in caplog.text
        assert key not in caplog.text
        far = "x" * 290  # so that a cut falls into the key
        for fault in (
            saying(f"You sent {key}"),
            whole(model=f"model of {key}"),
            status(500, text=f"{far} {key}"),
            status(307, {"Location": f"http://elsewhere/{key}"}),
            body_of(f'["{far}"], {key}'.encode()),
            body_of(f"{key} is not JSON".encode()),
        ):
            server.faults = [fault, fault]
            labeller(pairs_of([10.0 + len(server.asked)], [-1.0]))
        labeller.close()
    assert server.keys == {f"Bearer {key}"}
    assert b"very-secret" not in kept(tmp_path)
    # That library's log shows what headers a server has sent.
    logged = [one.getMessage() for one in caplog.records if not one.name.startswith("httpcore2")]
    assert "very-secret" not in "".join(logged)
    assert len(told) > 1
    assert not any("very-secret" in str(one.message) for one in told)


@pytest.mark.parametrize("value", ["1e400", "nan", "Thu, 01 Jan 2999 00:00:00 GMT"])
def test_no_server_asks_for_more_than_an_hour_of_rest(
    value: str, server: ModelServer, tmp_path: Path
) -> None:
    clock = FakeClock()
    labeller = make(server.base_url, tmp_path, clock, concurrency=1)
    label(labeller, 5.0, 6.0)
    server.faults = [status(429, {"Retry-After": value})]
    label(labeller)
    clock.now += 3_601.0
    assert not math.isnan(label(labeller))


def test_a_key_that_cannot_be_sent_is_not_shown(
    server: ModelServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN_KEY", "two\nlines")
    with pytest.raises(ConfigError, match="STAND_IN_KEY holds a character that no key has") as got:
        make(server.base_url, tmp_path)
    assert "two" not in str(got.value)
