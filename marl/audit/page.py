"""The report as one HTML file that needs nothing else; every text in it is escaped."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from marl.audit.drawing import reliability_plot
from marl.audit.pairs import Pair
from marl.audit.report import Report
from marl.audit.sections import Section, number, sections
from marl.audit.statistics import Bin, calibration_error

_STYLE = Path(__file__).with_name("page.css")
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""Should a text ever get past the escaping, the browser runs and loads nothing."""

_NO_SURPRISE = (
    "<section><h2>Surprising pairs</h2><p>There are none: no answer prefers the smaller return, "
    "and the learned reward is never far off.</p></section>"
)


def page(report: Report, most: int) -> str:
    """Return the page, with up to `most` surprising pairs of each kind."""
    title = f"{report.algorithm} on {report.env}"
    body = [
        f'<header><p class="kind">Labels of a run</p><h1>{escape(title)}</h1>'
        f"<p>{escape(_whose(report))}</p></header>",
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        *(_table(section) for section in sections(report)),
    ]
    if report.bins:
        body.append(_reliability(report.bins))
    surprises = report.surprises(most)
    body += [_surprises(heading, pairs) for heading, pairs in surprises.items()]
    if not surprises:
        body.append(_NO_SURPRISE)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Labels: {escape(title)}</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _whose(report: Report) -> str:
    kept = "" if report.kept is None else f", at step {report.kept.steps:,}"
    store = f". Store of answers: {report.store}" if report.store else ""
    return f"Run {report.run}{kept}. Labeller: {report.labeller}{store}"


def _table(section: Section) -> str:
    headings = "".join(f"<th>{_lines(heading)}</th>" for heading in section.headings)
    rows = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in section.rows
    )
    return (
        f'<section><h2>{escape(section.title)}</h2><div class="wide"><table><thead><tr>{headings}'
        f"</tr></thead><tbody>{rows}</tbody></table></div></section>"
    )


def _reliability(bins: Sequence[Bin]) -> str:
    error = number(calibration_error(bins))
    return (
        '<section class="plot"><h2>Reliability</h2><figure>'
        f"{reliability_plot(bins)}<figcaption>How often an answer agrees with the return, over how "
        "sure it is. On the dashed line it is right as often as it claims. Bars are 95&nbsp;% "
        f"intervals. Expected calibration error: {error}.</figcaption></figure></section>"
    )


def _surprises(heading: str, pairs: Sequence[Pair]) -> str:
    return f"<section><h2>{escape(heading)}</h2>{''.join(map(_surprise, pairs))}</section>"


def _surprise(pair: Pair) -> str:
    prefers = "first" if pair.label > 0.5 else "second"
    facts = [f"P(first preferred) = {pair.label:.2f}"]
    if math.isfinite(pair.learned):
        facts.append(f"the learned reward says {pair.learned:.2f}")
    facts += [f"prompt {pair.prompt}"] if pair.prompt else []
    facts += [pair.model] if pair.model else []
    sides = "".join(_side(pair, index, name, name == prefers)
                    for index, name in enumerate(("first", "second")))  # fmt: skip
    return (
        f'<article><p class="facts">{escape("; ".join(facts))}</p>'
        f'<div class="sides">{sides}</div></article>'
    )


def _side(pair: Pair, index: int, name: str, is_preferred: bool) -> str:
    which = "" if pair.numbers is None else f" (episode {pair.numbers[index]:,})"
    mark = " preferred" if is_preferred else ""
    told = f'<span class="mark">{mark.strip()}</span>' if mark else ""
    return (
        f'<div class="side{mark}"><h3>{name}{which}{told}</h3>'
        f'<p class="return">return {number(pair.returns[index], ",.4g")}</p>'
        f"<pre>{escape(pair.texts[index])}</pre></div>"
    )


def _lines(text: str) -> str:
    """Return a heading of several lines, the first of them strong."""
    first, *others = text.split("\n")
    return escape(first) + "".join(f"<small>{escape(line)}</small>" for line in others)
