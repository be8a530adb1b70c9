"""What a person sees while a run trains: a live panel, or plain lines without a terminal."""

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from envs import EnvSpec
from marl.utils.metrics import TIME_PARTS
from marl.utils.text import LiteralConsole

_BLOCKS, _ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-:=+*#"
"""Eight heights, for terminals that write Unicode and for those that do not."""
_SPARKS = 40
_SECONDS_PER_FRAME = 0.25
_SECONDS_PER_LINE = 10.0
_RATE_WINDOW = 20


class Progress:
    """Shows metrics as they come; a context manager around the loop over `train`.

    The speed counts from the first metrics on: a first iteration also compiles and starts workers.
    """

    def __init__(
        self,
        total_steps: int,
        title: str,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps, self._title, self._steps = total_steps, title, 0
        self._console = console or LiteralConsole()
        self._clock = clock
        self._blocks = _ASCII_BLOCKS if self._console.options.ascii_only else _BLOCKS
        self._spec: EnvSpec | None = None
        self._has_begun = False
        self._marks: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)
        self._rates: dict[str, float] = {}
        self._returns: deque[float] = deque(maxlen=_SPARKS)
        self._evaluation = ""
        self._metrics: dict[str, float] = {}
        self._shown_at, self._shown_steps = -math.inf, -1
        self._live = (
            Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        )

    def __enter__(self) -> Self:
        return self

    def begin(self, spec: EnvSpec | None = None) -> None:
        """Show the title, now that the run is there; the first metrics do so at the latest.

        `spec`, the environment's, says which facts are success rates and how long episodes are.
        """
        self._spec, self._has_begun = spec, True
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(Text(self._title), soft_wrap=True)

    @property
    def no_episode(self) -> str:
        """What to say while no episode has ended; empty once one has."""
        if self._returns or self._spec is None:
            return ""
        steps = self._spec.max_steps
        return f"no episode has ended yet: it takes up to {steps:,} steps of every environment"

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._metrics:
            self._show()
        if self._live is not None and self._has_begun:
            self._live.stop()

    def update(self, metrics: dict[str, float], *, at_once: bool = False) -> None:
        """Take one iteration's metrics; of them ``steps`` must be there. Draws when it is time.

        `at_once` draws what is open for people now, since training may wait for them next.
        """
        if not self._has_begun:
            self.begin()
        self._metrics = metrics
        self._steps = int(metrics["steps"])
        self._marks.append((self._clock(), self._steps))
        if math.isfinite(metrics.get("return/mean", math.nan)):
            self._returns.append(metrics["return/mean"])
            names = self._spec.successes if self._spec is not None else ()
            self._rates = {name: metrics[f"episode/{name}"] for name in names}
        if "evaluation/greedy" in metrics:
            greedy, sampled = metrics["evaluation/greedy"], metrics["evaluation/sampled"]
            self._evaluation = f"greedy {greedy:,.4g}, sampled {sampled:,.4g}"
        interval = _SECONDS_PER_LINE if self._live is None else _SECONDS_PER_FRAME
        is_asking = at_once and metrics.get("labeller/open", 0.0) > 0
        if is_asking or self._clock() - self._shown_at >= interval:
            self._show()

    def _show(self) -> None:
        if self._live is not None:
            self._live.update(self._panel(), refresh=True)
        elif self._shown_steps != self._steps:
            self._console.print(Text(self._line()), soft_wrap=True)
        self._shown_at, self._shown_steps = self._clock(), self._steps

    def _steps_per_second(self) -> float:
        """Return the speed over the latest iterations, NaN before the second."""
        if not self._marks:
            return math.nan
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start else math.nan

    def _facts(self) -> list[tuple[str, str]]:
        """Return (name, value) of all that is known, in the order shown."""
        speed = self._steps_per_second()
        steps_left = max(0, self._total_steps - self._steps)
        facts = [("steps", f"{self._steps:,} / {self._total_steps:,}")]
        if speed > 0:
            facts.append(("speed", f"{speed:,.0f} steps/s"))
            facts.append(("left", duration(steps_left / speed)))
        if self._returns:
            facts.append(("return", f"{self._returns[-1]:,.4g}"))
        facts += [(name, f"{rate:.0%}") for name, rate in self._rates.items()]
        if self.no_episode:
            facts.append(("return", self.no_episode))
        if self._evaluation:
            facts.append(("evaluation", self._evaluation))
        accuracy = self._metrics.get("preference/accuracy", math.nan)
        if math.isfinite(accuracy):
            facts.append(("preferences", f"{accuracy:.0%} right"))
        correlation = self._metrics.get("regression/correlation", math.nan)
        if math.isfinite(correlation):
            facts.append(("rewards", f"correlate {correlation:.2f} with returns"))
        if is_open := int(self._metrics.get("labeller/open", 0)):
            facts.append(("people", f"{is_open} open question{'s' if is_open > 1 else ''}"))
        if split := time_split(self._metrics):
            facts.append(("time", "  ".join(f"{part} {share:.0%}" for part, share in split)))
        return facts

    def _line(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self._facts())

    def _panel(self) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for name, value in self._facts():
            text = Text(value)
            if name == "return":
                text.append(f"  {sparkline(list(self._returns), self._blocks)}", style="cyan")
            table.add_row(Text(name, style="dim"), text)
        bar = ProgressBar(total=self._total_steps, completed=self._steps)
        title = Text(self._title)
        return Panel(Group(bar, table), title=title, title_align="left", border_style="dim")


def sparkline(values: list[float], blocks: str = _BLOCKS) -> str:
    """Return one block per value, the lowest value lowest; equal values are all in the middle."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return blocks[3] * len(values)
    top = len(blocks) - 1
    return "".join(blocks[round((value - low) / (high - low) * top)] for value in values)


def duration(seconds: float) -> str:
    """Return e.g. ``7s``, ``3m05s`` or ``2h05m``; ``?`` when not known."""
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}h{minutes_left:02d}m" if hours else f"{minutes}m{rest:02d}s"


def time_split(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """Return (part, share of the iteration's time in [0, 1]) of the parts that took any."""
    seconds = {part: metrics.get(f"time/{part}", 0.0) for part in TIME_PARTS}
    total = sum(seconds.values())
    return [(part, value / total) for part, value in seconds.items() if value > 0] if total else []
