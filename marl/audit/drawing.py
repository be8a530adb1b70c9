"""The reliability of probabilities, drawn as SVG."""

from collections.abc import Sequence

from marl.audit.statistics import Bin

_WIDTH, _HEIGHT = 460, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 14, 14, 44
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


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
