"""Requests to a model's server: their keys, prompts, pauses, caps, and the cache of answers."""

import asyncio
import math
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from marl.config import ConfigError
from marl.config.preferences import LlmConfig
from marl.preferences.llm.cache import (
    AnswerCache,
    CacheError,
    Labelled,
    Spending,
    Spent,
    snapshot,
)
from marl.preferences.llm.client import Breaker
from marl.preferences.llm.prompts import MAX_TEXT, cleaned, load_template
from marl.preferences.llm.protocol import (
    Fault,
    Features,
    Request,
    make_requests,
    request_body,
    retry_after,
)
from marl.preferences.llm.verdicts import Score, verdict
from tests.llm_cases import FakeClock, reply

LETTERS = ("A", "B")


def test_every_part_of_a_request_makes_another_key() -> None:
    template = load_template("", "pointwise")
    parts: frozenset[Any] = frozenset(("max_tokens", "seed", "temperature"))
    soft = Features(parts=parts, top_logprobs=20)

    def key(
        base_url: str = "u", episode: str = "e", features: Features = soft, **changes: Any
    ) -> str:
        config = LlmConfig(**({"model": "m"} | changes))
        messages = template.messages(task="", episode=episode)
        return make_requests(messages, template, config, base_url, features)[0].key

    others = [
        key(base_url="v"),
        key(episode="f"),
        key(model="n"),
        key(seed=1),
        key(soft_tokens=17),
        key(features=Features(parts=parts, top_logprobs=5)),
        key(features=Features(parts=parts | {"no_cache"}, top_logprobs=20)),
        key(features=Features(parts=parts)),
    ]
    assert len({key(), *others}) == 1 + len(others)
    assert key() == key()


def test_each_vote_has_a_key_of_its_own_also_without_a_seed() -> None:
    template = load_template("", "pairwise")
    messages = template.messages(task="", first="1", second="2")
    for parts in (("max_tokens", "seed"), ("max_tokens",)):
        features = Features(parts=frozenset(parts))  # type: ignore[arg-type]
        made = make_requests(messages, template, LlmConfig(votes=3), "u", features)
        assert len({request.key for request in made}) == 3


def test_thinking_is_switched_off_or_limited_in_the_request() -> None:
    both = Features(parts=frozenset(("thinking", "reasoning_effort")))
    off = request_body((), LETTERS, LlmConfig(thinking="off"), both)
    assert off["chat_template_kwargs"] == {"enable_thinking": False}
    assert off["reasoning_effort"] == "none"
    one = Features(parts=frozenset(("reasoning_effort",)))
    low = request_body((), LETTERS, LlmConfig(thinking="low"), one)
    assert low["reasoning_effort"] == "low"


def test_retry_after_in_both_its_forms() -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
    for value, seconds in (
        ("7", 7.0),
        ("Thu, 01 Jan 2026 12:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("soon", 0.0),
        ("-3", 0.0),
        ("nan", 0.0),
        ("1e400", 3600.0),
        ("Thu, 01 Jan 2099 12:00:30 GMT", 3600.0),
        ("Thu, 01 Jan 99999 12:00:30 GMT", 0.0),
    ):
        assert retry_after({"retry-after": value}, now) == seconds
    assert retry_after({}, now) == 0.0


def test_the_breaker_opens_lets_one_try_and_closes() -> None:
    clock = FakeClock()
    breaker = Breaker(3, 60.0, clock.clock)
    breaker.failed()
    breaker.failed()
    breaker.succeeded()
    breaker.failed()
    breaker.failed()
    assert not breaker.is_open
    breaker.failed()
    assert breaker.is_open
    clock.now += 60.0
    assert breaker.is_half_open
    breaker.failed(retry_after=300.0)
    clock.now += 299.0
    assert breaker.is_open
    clock.now += 1.0
    assert breaker.is_half_open
    breaker.succeeded()
    assert not breaker.is_open
    assert not breaker.is_half_open
    assert breaker.num_opened == 2


def test_a_cap_counts_what_is_under_way() -> None:
    # Two attempts of at most 100 tokens are under way and 100 are spent. A third does not fit 350
    # until the first turns out to have used 20; a fourth does not fit at all.
    async def work() -> None:
        spending = Spending(LlmConfig(max_total_tokens=350), Spent(calls=1, tokens=100), 0.0)
        one = Spent(calls=1, tokens=100)
        await spending.reserve(one)
        await spending.reserve(one)
        third = asyncio.create_task(spending.reserve(one))
        await asyncio.sleep(0)
        assert not third.done()
        await spending.settle(one, Spent(calls=1, tokens=20))
        await third
        await spending.settle(one, one)
        await spending.settle(one, one)
        assert spending.spent == Spent(calls=4, tokens=320)
        with pytest.raises(Fault, match="budget"):
            await spending.reserve(one)

    asyncio.run(work())


def test_the_estimate_is_an_upper_bound_and_money_has_two_prices() -> None:
    config = LlmConfig(max_tokens=16, prompt_price=2.0, reply_price=10.0)
    spending = Spending(config, Spent(), 0.0)
    estimate = spending.estimate({"messages": [{"role": "user", "content": "x" * 1000}]})
    assert estimate.tokens > 1000 + 16
    # 100 tokens at 2 and one at 10 per million.
    assert spending.used(reply(), estimate).cost == pytest.approx(210e-6)
    assert spending.used(reply(prompt_tokens=None), estimate) == estimate


def test_foreign_text_is_escaped_and_capped() -> None:
    assert cleaned("one\ntwo\x1b[31m\u202e") == "one\ntwo\\x1b[31m\\u202e"
    assert len(cleaned("x" * 10 * MAX_TEXT)) == MAX_TEXT


PROMPT = """
version = 3
form = "pointwise"
choices = ["Good", "Bad"]
system = "Judge."
user = "{episode}"
nudge = "One word."
"""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("{episode}", "{epsiode}", r"unknown field \{epsiode\}; did you mean 'episode'"),
        ("{episode}", "{episode.__class__}", r"unknown field \{episode.__class__\}"),
        ("{episode}", "{episode!r}", "takes no format or conversion"),
        ("{episode}", "{task}", r"never shows \{episode\}"),
        ("{episode}", "{episode} {", "write a literal brace twice"),
        ("version = 3", "version = '3'", "version is '3', expected int"),
        ('"pointwise"', '"pairwise"', r"unknown field \{episode\}"),
        ('"pointwise"', '"both"', "expected \"pointwise\" or \"pairwise\""),
        ('["Good", "Bad"]', '["Good", "good"]', "expected two different words"),
        ("nudge", "nuge", "unknown key 'nuge'; did you mean 'nudge'"),
        ("version = 3", "version = = 3", "not valid TOML"),
    ],
)  # fmt: skip
def test_a_bad_template_is_an_error_that_says_where(
    before: str, after: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROMPT.replace(before, after))
    with pytest.raises(ConfigError, match=message) as caught:
        load_template(str(path), "pointwise")
    assert str(path) in str(caught.value)


def test_a_template_of_ones_own_and_its_identity(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(PROMPT)
    mine = load_template(str(path), "pointwise")
    assert mine.messages(task="", episode="a {brace}")[1]["content"] == "a {brace}"
    path.write_text(PROMPT.replace("Judge.", "Judge!"))
    assert load_template(str(path), "pointwise").identity != mine.identity
    with pytest.raises(ConfigError, match="one of the shipped names: pairwise, pointwise"):
        load_template("pointwize", "pointwise")
    with pytest.raises(ConfigError, match=r'form is "pointwise", but preferences.llm.ask'):
        load_template(str(path), "pairwise")


def test_shipped_templates_say_the_better_episode_is_better() -> None:
    for form in ("pointwise", "pairwise"):
        template = load_template("", form)  # type: ignore[arg-type]
        assert len(template.known) >= 6
        assert all(better != worse for better, worse in template.known)


def asking(episode: str) -> Request:
    """Return a question about an episode."""
    template = load_template("", "pointwise")
    messages = template.messages(task="", episode=episode)
    features = Features(parts=frozenset(("max_tokens",)))
    return make_requests(messages, template, LlmConfig(votes=1), "u", features)[0]


def filled(path: Path) -> None:
    cache = AnswerCache(path)
    for episode in ("one", "two"):
        request = asking(episode)
        call = cache.begin(request, Spent(calls=1, tokens=500, cost=0.5))
        cache.answered(call, request, reply("Good"), Spent(calls=1, tokens=101, cost=0.1))
    cache.close()


def test_the_cache_counts_what_was_spent_and_doubts_what_was_under_way(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    filled(path)
    cache = AnswerCache(path)
    assert cache.spent().calls == 2
    assert cache.spent().tokens == 202
    free = cache.begin(asking("free"), Spent(calls=1, tokens=500, cost=0.5))
    cache.failed(free, "refused", "", paid=False)
    cache.begin(asking("under way"), Spent(calls=1, tokens=500, cost=0.5))
    cache.close()
    cache = AnswerCache(path)
    assert cache.is_in_doubt(asking("under way").key)
    assert not cache.is_in_doubt(asking("free").key)
    # 202 tokens were reported, and 500 may have been used by the attempt under way.
    assert (cache.spent().calls, cache.spent().tokens) == (4, 702)
    assert cache.spent().cost == pytest.approx(0.7)
    cache.close()


def test_two_writers_are_one_too_many(tmp_path: Path) -> None:
    cache = AnswerCache(tmp_path / "s.sqlite")
    with pytest.raises(CacheError, match="another run is writing to this cache"):
        AnswerCache(tmp_path / "s.sqlite")
    cache.close()
    AnswerCache(tmp_path / "s.sqlite").close()


def test_a_cache_of_another_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    newer, other, text = (tmp_path / name for name in ("newer", "other", "text"))
    filled(newer)
    database = sqlite3.connect(newer)
    database.execute("PRAGMA user_version = 7")
    database.close()
    before = newer.read_bytes()
    with pytest.raises(CacheError, match=r"another version \(layout 7, this one knows 3\)"):
        AnswerCache(newer)
    assert newer.read_bytes() == before
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE mine (a TEXT)")
    database.close()
    with pytest.raises(CacheError, match="not an answer cache"):
        AnswerCache(other)
    text.write_text("not a database at all" * 100)
    with pytest.raises(CacheError, match="damaged"):
        AnswerCache(text)


def test_damage_is_found_and_nothing_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    filled(path)
    whole = path.read_bytes()
    assert whole.count(b'"text":"Good"') == 2
    for damaged in (
        whole.replace(b'"text":"Good"', b'"text":"Bad!"', 1),  # SQLite itself sees nothing wrong
        whole[:4096] + bytes(4096) + whole[8192:],
        whole[: len(whole) // 2],
    ):
        path.write_bytes(damaged)
        with pytest.raises(CacheError, match=r"damaged: .*Nothing was changed"):
            AnswerCache(path)
        assert path.read_bytes() == damaged
    path.write_bytes(whole)
    AnswerCache(path).close()


def labelled(number: int) -> Labelled:
    """Return a pair whose first question was answered and whose second failed."""
    scores = (Score(log_odds=1.0, mass=0.9), Fault("timeout", ""))
    return Labelled(
        template=load_template("", "pointwise"),
        model="m",
        first="one",
        second="two",
        numbers=(number, 7),
        returns=(1.0, math.nan),
        scores=scores,
        verdict=verdict(scores, "pointwise", LlmConfig()),
    )


def test_a_snapshot_leaves_the_file_alone_also_while_a_run_writes(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    filled(path)
    before = path.read_bytes()
    with closing(snapshot(path)) as copy:
        assert copy.execute("SELECT count(*) FROM answers").fetchone() == (2,)
    assert path.read_bytes() == before
    cache = AnswerCache(path, "mine")
    cache.add_labels([labelled(1), labelled(2), labelled(2)])
    with closing(snapshot(path)) as copy:
        rows = copy.execute(
            "SELECT run, first_number, first_odds, second_odds, second_return, label, outcome"
            " FROM labels ORDER BY first_number"
        ).fetchall()
    assert rows == [("mine", n, 1.0, None, None, None, "timeout") for n in (1, 2)]
    cache.close()
    with pytest.raises(CacheError, match=r"nowhere\.sqlite: there is no answer cache"):
        snapshot(tmp_path / "nowhere.sqlite")


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file/s\.sqlite: cannot be written: .*llm\.cache"):
        AnswerCache(tmp_path / "file" / "s.sqlite")
