"""The page needs nothing else, and takes every foreign text literally."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from marl.reports.audit import Report, plain, show, to_json
from marl.reports.audit_html import page
from marl.reports.audit_sources import CachedAnswers, judges
from marl.reports.statistics import Pair, Share

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&[bold]"


def report_of(pairs: list[Pair], text: str = "plain") -> Report:
    asked = CachedAnswers(pairs=tuple(pairs), costs=())
    return Report(
        run=text,
        env=text,
        algorithm="imap",
        labeller=text,
        cache=text,
        has_prices=False,
        judges=tuple(judges(asked)),
        kept=None,
        pairs=tuple(pairs),
        people=(),
        notes=(text,),
    )


WRONG = Pair(label=0.9, returns=(1.0, 2.0), numbers=(3, 1004), texts=("came far", "fell"),
             prompt="pairwise@1:aa", model="m", form="pairwise", first_choice="A",
             learned=0.25)  # fmt: skip


class Elements(HTMLParser):
    """Collects the elements and attributes of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_foreign_text_stays_text() -> None:
    evil = replace(WRONG, texts=(EVIL, EVIL), prompt=EVIL, model=EVIL, first_choice=EVIL)
    found = Elements(page(report_of([evil], EVIL), 8))
    assert not {"script", "img", "iframe", "link", "object"} & found.tags
    assert not {"src", "href", "onerror", "onclick"} & found.attributes
    # Run, environment and title, labeller, store, note, prompt, model, choice; and the pair.
    assert found.text.count(EVIL) >= 10
    clean = Elements(page(report_of([WRONG]), 8))
    assert found.tags == clean.tags
    assert found.attributes == clean.attributes


def test_the_page_loads_nothing() -> None:
    text = page(report_of([WRONG]), 8)
    assert "default-src 'none'" in text
    for loader in ("http:", "https:", "url(", "@import", "<script", "<link"):
        assert loader not in text.replace("Content-Security-Policy", "")


def test_a_surprising_pair_is_told_whole() -> None:
    text = page(report_of([WRONG]), 8)
    for part in ("P(first preferred) = 0.90", "the learned reward says 0.25", "pairwise@1:aa",
                 "came far", "fell", "episode 1,004", "Most sure against the return",
                 "Farthest from the learned reward"):  # fmt: skip
        assert part in text
    assert '<div class="side preferred"><h3>first (episode 3)' in text
    quiet = page(report_of([replace(WRONG, label=0.1, learned=0.2)]), 8)
    assert "There are none" in quiet
    assert "Most sure against" not in page(report_of([WRONG]), 0)


@pytest.mark.parametrize("width", [60, 200])
def test_the_console_takes_markup_literally(width: int) -> None:
    console = Console(width=width, record=True, file=None, quiet=False)
    with console.capture() as capture:
        show(report_of([replace(WRONG, model="[red]m[/nonsense]")]), console)
    shown = capture.get().replace("\n", "")
    assert "[red]m[/nonsense]" in shown
    assert "agrees with the return" in shown


def test_reliability_is_drawn_where_there_are_probabilities() -> None:
    assert "<svg" in page(report_of([WRONG]), 8)
    assert "<svg" not in page(report_of([replace(WRONG, label=1.0)]), 8)


def test_json_knows_no_nan_and_names_the_pairs() -> None:
    found = to_json(report_of([replace(WRONG, learned=math.nan)]), 8)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    (pair,) = found["surprises"]["Most sure against the return"]
    assert (pair["numbers"], pair["learned"], pair["texts"]) == ([3, 1004], None,
                                                                 ["came far", "fell"])  # fmt: skip
    assert found["asked"][0]["agreement"]["part"] == 0
    assert found["people"] == []
    assert plain(Share(part=0, whole=0)) == {
        "part": 0,
        "of": 0,
        "share": None,
        "low": None,
        "high": None,
    }
