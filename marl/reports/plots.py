"""``curve.png``: one picture of a run, drawn from its ``metrics.csv``; ``calibration.png``: one of
a fitted reward model; ``contrast.png``, ``guidance.png``: one of a team steered while it acts.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from marl.reports.recorded import smoothed
from marl.utils.files import atomic_path, output
from marl.utils.metrics import TIME_PARTS, read_metrics
from marl.utils.text import one_line

if TYPE_CHECKING:
    from marl.evaluation import SteeringCurve
    from marl.rewards.scoring import Reliability  # which imports PyTorch

FloatArray = npt.NDArray[np.floating[Any]]
Metrics = dict[str, npt.NDArray[Any]]

_LOSSES = (
    "preference/loss",
    "preference/held_out_loss",
    "regression/loss",
    "regression/held_out_loss",
    "value/loss",
    "value/loss_team",
    "value/loss_local",
)
INK, GRID = "#2b2d42", "#e4e6eb"
_LEAST_LABELLED_SHARE = 0.05
_COLOURS = ("#3d85b0", "#e07a5f", "#81b29a", "#e9b44c", "#a99fb0")


def plot_run(
    folder: Path,
    successes: Sequence[str] = (),
    heading: str = "",
    baselines: Mapping[str, float] | None = None,
) -> Path:
    """Return the path of ``curve.png``: return, preference accuracy, losses and time by step.

    `heading` says what was trained. `successes` are the facts whose means are success rates; they
    get a panel too. A panel whose metrics the run did not record is left out; the return is always
    there, with the returns of `baselines` as dotted lines.
    """
    metrics = read_metrics(folder)
    panels = [draw for needs, draw in _SMALL_PANELS if any(_has(metrics, name) for name in needs)]
    if rates := [name for name in successes if _has(metrics, f"episode/{name}")]:
        panels.insert(0, partial(_draw_successes, names=rates))
    figure = figure_of(11, 7.5 if panels else 5)
    if heading:
        figure.suptitle(literal(heading), x=0.01, ha="left", color=INK, fontsize=13)
    grid = figure.add_gridspec(2, max(len(panels), 1), height_ratios=(1.7, 1 if panels else 0.001))
    above = _over_steps(figure.add_subplot(grid[0, :]))
    _draw_return(above, metrics)
    for name, value in (baselines or {}).items():
        _draw_baseline(above, name, value)
    for column, draw in enumerate(panels):
        draw(_over_steps(figure.add_subplot(grid[1, column])), metrics)
    return saved(figure, folder / "curve.png")


def plot_reliability(table: "Reliability", path: Path) -> Path:
    """Return the path of the reliability diagram: how often each confidence is right, and how
    many pairs there are of it. Calibrated confidences lie on the diagonal."""
    figure = figure_of(6, 6.5)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 1))
    above, below = (styled(figure.add_subplot(grid[row])) for row in range(2))
    edges, counts = table.edges.numpy(), table.counts.numpy()
    filled, widths = counts > 0, np.diff(edges)
    error = f"{table.error:.3f}" if counts.sum() else "unknown"
    title(above, f"Held-out pairs: expected calibration error {error}")
    bars: dict[str, Any] = {"align": "edge", "edgecolor": "white"}
    shares = table.agreement.numpy()[filled]
    above.bar(edges[:-1][filled], shares, widths[filled], color=_COLOURS[0], **bars)
    above.plot((0.5, 1.0), (0.5, 1.0), color=INK, linewidth=1, linestyle=":")
    above.plot(
        table.confidence.numpy()[filled], shares, color=_COLOURS[1], marker="o", linestyle="none"
    )
    above.set_ylim(0, 1.02)
    above.set_ylabel("share right", color=INK)
    below.bar(edges[:-1], counts, widths, color=_COLOURS[4], **bars)
    below.set_ylabel("pairs", color=INK)
    below.set_xlabel("confidence: P(the episode it prefers)", color=INK)
    for axes in (above, below):
        axes.set_xlim(0.5, 1.0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    above.yaxis.set_major_formatter(PercentFormatter(1.0))
    return saved(figure, path)


def plot_steering(curve: "SteeringCurve", name: str, path: Path) -> Path:
    """Return the path of a steered team's mean returns by strength, its controls beside it.

    The band is the 95 % interval of sampled actions.
    """
    figure = figure_of(7, 4.5)
    axes = styled(figure.add_subplot())
    title(axes, f"{name[:1].upper()}{name[1:]}")
    points = sorted(curve.points, key=lambda point: point.strength)
    strengths = [point.strength for point in points]
    low, high = ([getattr(p.sampled, end) for p in points] for end in ("low", "high"))
    axes.fill_between(strengths, low, high, color=_COLOURS[0], alpha=0.2, linewidth=0)
    sharpened = [np.nan if p.sharpened is None else p.sharpened.mean for p in points]
    for label, colour, means in (
        ("sampled", _COLOURS[0], [point.sampled.mean for point in points]),
        ("greedy", _COLOURS[1], [point.greedy.mean for point in points]),
        ("sharpened, sampled", _COLOURS[2], sharpened),
    ):
        axes.plot(strengths, means, color=colour, marker="o", label=label)
    unsteered: dict[str, Any] = {"linewidth": 1, "linestyle": ":", "label": "greedy, not steered"}
    axes.axhline(curve.greedy.mean, color=INK, **unsteered)
    axes.set_xlabel("strength", color=INK)
    axes.set_ylabel("mean return", color=INK)
    axes.legend(frameon=False, labelcolor=INK)
    return saved(figure, path)


def literal(text: str) -> str:
    """Return a foreign text that matplotlib takes for no formula."""
    return one_line(text, 200).replace("$", r"\$")


def figure_of(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    # The engine is the constrained one, which matplotlib does not type.
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    FigureCanvasAgg(figure)
    return figure


def saved(figure: Figure, path: Path) -> Path:
    """Write a figure atomically and return its path."""
    with output(path, "make room for it there"), atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _has(metrics: Metrics, name: str) -> bool:
    return name in metrics and bool(np.isfinite(metrics[name]).any())


def styled(axes: Axes) -> Axes:
    """Return the axes with a light grid and no box."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    return axes


def _over_steps(axes: Axes) -> Axes:
    """Return styled axes over environment steps, told as 50k or 1M."""
    styled(axes).xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps", color=INK)
    return axes


def title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", color=INK, fontweight="bold", fontsize=11)


def _draw_return(axes: Axes, metrics: Metrics) -> None:
    """Draw each iteration's return faintly and its running mean over a twentieth of the run."""
    title(axes, "Mean return of finished episodes")
    if not _has(metrics, "return/mean"):
        axes.text(0.5, 0.5, "no episode has finished yet", ha="center", transform=axes.transAxes)
        return
    known = np.isfinite(metrics["return/mean"])
    steps, returns = metrics["step"][known], metrics["return/mean"][known]
    smooth = smoothed(returns)
    axes.plot(steps, returns, color=_COLOURS[0], alpha=0.35, linewidth=1, marker="o", markersize=4)
    axes.plot(steps, smooth, color=_COLOURS[0], linewidth=2.2)
    _draw_evaluations(axes, metrics)
    axes.set_xlim(0, metrics["step"][-1] * 1.06)  # room for the last value's label
    axes.annotate(
        f"{smooth[-1]:,.4g}",
        (steps[-1], smooth[-1]),
        xytext=(6, 0),
        textcoords="offset points",
        color=_COLOURS[0],
        fontweight="bold",
        va="center",
    )


def _draw_baseline(axes: Axes, name: str, value: float) -> None:
    """Draw what others reach in the end as a dotted line."""
    axes.axhline(value, color=INK, linewidth=1, linestyle=":")
    axes.annotate(
        literal(f"{name} {value:,.4g}"),
        (0.995, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        color=INK,
        fontsize=8,
        ha="right",
    )


def _draw_evaluations(axes: Axes, metrics: Metrics) -> None:
    """Draw the returns of the evaluations while training, where there were any."""
    drawn = [name for name in ("greedy", "sampled") if _has(metrics, f"evaluation/{name}")]
    for name, colour in zip(drawn, _COLOURS[1:], strict=False):
        known = np.isfinite(metrics[f"evaluation/{name}"])
        points = metrics["step"][known], metrics[f"evaluation/{name}"][known]
        label = f"evaluation, {name}"
        axes.plot(*points, color=colour, linewidth=1.4, marker="D", markersize=4, label=label)
    if drawn:
        axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")


def _draw_successes(axes: Axes, metrics: Metrics, names: Sequence[str]) -> None:
    """Draw the share of episodes that succeeded: each iteration's faintly, and running means."""
    title(axes, "Episodes " + ", ".join(name.replace("_", " ") for name in names))
    for name, colour in zip(names, itertools.cycle(_COLOURS)):
        known = np.isfinite(metrics[f"episode/{name}"])
        steps, rates = metrics["step"][known], metrics[f"episode/{name}"][known]
        axes.plot(steps, rates, color=colour, alpha=0.35, linewidth=1)
        axes.plot(steps, smoothed(rates), color=colour, linewidth=1.6, label=name)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_accuracy(axes: Axes, metrics: Metrics) -> None:
    title(axes, "Preference accuracy")
    axes.axhline(0.5, color=INK, linewidth=1, linestyle=":")
    axes.plot(metrics["step"], metrics["preference/accuracy"], color=_COLOURS[1], linewidth=1.6)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def _draw_losses(axes: Axes, metrics: Metrics) -> None:
    title(axes, "Losses")
    recorded = [name for name in _LOSSES if _has(metrics, name)]
    for name, colour in zip(recorded, itertools.cycle(_COLOURS), strict=False):
        label = name.replace("/", " ").replace("_", " ")
        axes.plot(metrics["step"], metrics[name], color=colour, linewidth=1.4, label=label)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _draw_time(axes: Axes, metrics: Metrics) -> None:
    """Draw the share of each iteration's time that each part took."""
    title(axes, "Where the time goes")
    parts = [part for part in TIME_PARTS if _has(metrics, f"time/{part}")]
    seconds = np.nan_to_num(np.stack([metrics[f"time/{part}"] for part in parts]))
    shares = seconds / np.maximum(seconds.sum(axis=0, keepdims=True), 1e-12)
    axes.stackplot(metrics["step"], shares, colors=_COLOURS)
    middle, overall = metrics["step"][[0, -1]].mean(), shares.mean(axis=1)
    for part, share, top in zip(parts, overall, overall.cumsum(), strict=True):
        if share >= _LEAST_LABELLED_SHARE:
            label = f"{part} {share:.0%}"
            axes.text(middle, top - share / 2, label, color=INK, ha="center", va="center")
    axes.set_ylim(0, 1)
    axes.margins(x=0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


_SMALL_PANELS: tuple[tuple[tuple[str, ...], Callable[[Axes, Metrics], None]], ...] = (
    (("preference/accuracy",), _draw_accuracy),
    (_LOSSES, _draw_losses),
    (tuple(f"time/{part}" for part in TIME_PARTS), _draw_time),
)
