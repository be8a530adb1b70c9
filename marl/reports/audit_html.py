"""The report as one HTML file that needs nothing else; every text in it is escaped."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from marl.reports.audit import Report, Section, number, sections
from marl.reports.statistics import Bin, Pair, calibration_error

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 44
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


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
    cache = f". Answer cache: {report.cache}" if report.cache else ""
    return f"Run {report.run}{kept}. Labeller: {report.labeller}{cache}"


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


def reliability_plot(bins: Sequence[Bin]) -> str:
    """Return a plot of how often answers were right over how sure they were.

    Each dot is a bin, its area grows with its pairs, the bar through it is the 95 % interval. On
    the dashed line answers are as often right as they claim.
    """
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Reliability of the answers">'
    ]
    for tick in _TICKS:
        y = _y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4}" text-anchor="end">'
                     f"{tick:.0%}</text>")  # fmt: skip
    for sure in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(f'<text class="tick" x="{_x(sure)}" y="{_HEIGHT - _BOTTOM + 18}" '
                     f'text-anchor="middle">{sure:.0%}</text>')  # fmt: skip
    parts.append(
        f'<line class="ideal" x1="{_x(0.5)}" y1="{_y(0.5)}" x2="{_x(1.0)}" y2="{_y(1.0)}"/>'
    )
    most = max((b.right.whole for b in bins), default=1)
    for b in bins:
        x, (low, high) = _x(b.confidence), b.right.interval
        radius = 4 + 7 * (b.right.whole / most) ** 0.5
        parts.append(f'<line class="interval" x1="{x}" x2="{x}" y1="{_y(low)}" y2="{_y(high)}"/>')
        parts.append(
            f'<circle cx="{x}" cy="{_y(b.right.value)}" r="{radius:.1f}"><title>{b.right.part} of '
            f"{b.right.whole} right, {b.confidence:.0%} sure</title></circle>"
        )
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts.append(f'<text x="{_x(0.75)}" y="{_HEIGHT - 6}" text-anchor="middle">how sure</text>')
    parts.append(f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
                 "agrees with the return</text></svg>")  # fmt: skip
    return "".join(parts)


def _x(confidence: float) -> float:
    width = _WIDTH - _LEFT - _RIGHT - 12
    return round(_LEFT + 6 + (confidence - 0.5) * 2 * width, 1)


def _y(right: float) -> float:
    return round(_HEIGHT - _BOTTOM - right * (_HEIGHT - _TOP - _BOTTOM), 1)


def _lines(text: str) -> str:
    """Return a heading of several lines, the first of them strong."""
    first, *others = text.split("\n")
    return escape(first) + "".join(f"<small>{escape(line)}</small>" for line in others)
