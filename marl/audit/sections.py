"""The report as tables of words, which console, page and benchmark print alike."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from marl.audit.from_checkpoint import Kept
from marl.audit.from_people import Person
from marl.audit.judge import Judge
from marl.audit.report import Report
from marl.audit.statistics import (
    Share,
    agreement,
    calibration_error,
    confident_agreement,
    quantile,
)

UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table: its first column names what the others hold."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def sections(report: Report) -> list[Section]:
    """Return all tables of a report."""
    found = []
    if report.judges:
        found.append(_asked(report))
    if report.kept is not None:
        found.append(_kept(report, report.kept))
    if report.people:
        found.append(_people(report.people))
    return found


def share(share: Share, *, counted: str = "") -> str:
    """Return a share with its 95 % interval and how many it is of."""
    if not share.whole:
        return UNKNOWN
    low, high = share.interval
    of = f"{share.whole:,} {counted}".strip()
    return f"{share.value:.0%} ({low:.0%} to {high:.0%}) of {of}"


def number(value: float, form: str = ".2f", unit: str = "") -> str:
    """Return a number with its unit, a dash where it is not known."""
    return f"{value:{form}}{unit}" if math.isfinite(value) else UNKNOWN


def judge_rows(judge: Judge, *, has_prices: bool) -> list[tuple[str, str]]:
    """Return the figures of one prompt and model, by name."""
    rows = [
        ("different pairs", f"{judge.pairs:,}"),
        ("answered", f"{judge.answered:,}"),
        ("of these ties", f"{judge.ties:,}"),
        ("no answer", _reasons(judge.unanswered)),
        ("agrees with the return", share(judge.agreement)),
        ("the surer half agrees", share(judge.confident)),
        ("calibration error", number(calibration_error(judge.bins))),
        ("order changes the answer", share(judge.flips)),
        (f"says {judge.first_choice or 'the first choice'}", share(judge.firsts)),
        ("mean mass of the choices", number(judge.mass)),
    ]
    cost = judge.cost
    if cost is None:
        return [*rows, ("calls", UNKNOWN)]
    return [
        *rows,
        ("calls", f"{cost.calls:,}"),
        ("without a reply", _reasons(cost.unanswered)),
        ("tokens asked, replied", f"{cost.prompt_tokens:,}, {cost.reply_tokens:,}"),
        ("money", f"{cost.money:.4g}" if has_prices else "no prices set"),
        ("seconds a call, median", number(quantile(cost.seconds, 0.5), ".3g")),
        ("95 % are faster than", number(quantile(cost.seconds, 0.95), ".3g")),
    ]


def _asked(report: Report) -> Section:
    columns = [dict(judge_rows(judge, has_prices=report.has_prices)) for judge in report.judges]
    names = list(dict.fromkeys(name for column in columns for name in column))
    rows = [(name, *(column.get(name, UNKNOWN) for column in columns)) for name in names]
    headings = [
        f"{judge.prompt or 'prompt not noted'}\n{judge.model or 'model not noted'}"
        for judge in report.judges
    ]
    return Section(
        title="What the language model answered", headings=("", *headings), rows=tuple(rows)
    )


def _kept(report: Report, kept: Kept) -> Section:
    labels, gaps = [p.label for p in kept.pairs], [p.gap for p in kept.pairs]
    learned = agreement(labels, [pair.learned - 0.5 for pair in kept.pairs])
    rows = [
        ("asked in the run", f"{kept.asked:,}"),
        ("answered", f"{kept.answered:,}"),
        ("no answer", f"{kept.unanswered:,}"),
        ("asked again now" if kept.is_asked_now else "kept answers", f"{len(kept.pairs):,}"),
        ("of these ties", f"{labels.count(0.5):,}"),
        ("agree with the return", share(agreement(labels, gaps))),
        ("the surer half agrees", share(confident_agreement(labels, gaps))),
        ("the learned reward agrees", share(learned)),
    ]
    if kept.is_asked_now:
        rows.insert(5, ("of these no answer", f"{sum(map(math.isnan, labels)):,}"))
    if kept.forgotten:
        rows.append(("about episodes no longer kept", f"{kept.forgotten:,}"))
    return Section(
        title=f"What training uses, at step {kept.steps:,}",
        headings=("", report.labeller),
        rows=tuple(rows),
    )


def _people(people: Sequence[Person]) -> Section:
    figures: tuple[tuple[str, Callable[[Person], str]], ...] = (
        ("answers", lambda person: f"{person.answers:,}"),
        ("of these ties", lambda person: f"{person.ties:,}"),
        ("skipped", lambda person: f"{person.skipped:,}"),
        ("agrees with the return", lambda person: share(person.with_return)),
        ("agrees with labellers", lambda person: share(person.with_labellers)),
        ("agrees with other people", lambda person: share(person.with_others)),
        ("agrees with oneself", lambda person: share(person.with_oneself)),
    )
    rows = [(name, *(figure(p) for p in people)) for name, figure in figures]
    return Section(
        title="What people answered",
        headings=("", *(person.name for person in people)),
        rows=tuple(rows),
    )


def _reasons(reasons: "dict[str, int]") -> str:
    """Return counts by reason, the most frequent first."""
    if not reasons:
        return "0"
    ordered: Sequence[tuple[str, int]] = sorted(reasons.items(), key=lambda item: -item[1])
    return f"{sum(reasons.values()):,}: " + ", ".join(f"{name} {n:,}" for name, n in ordered)
