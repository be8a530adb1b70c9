"""`marl labels`: all that is known of a run's answers, as tables, as JSON and on the console."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from marl.config import ConfigError
from marl.config.io import load_run_config
from marl.reports.audit_sources import (
    CachedAnswers,
    JudgeReport,
    Kept,
    Person,
    SavedRun,
    judges,
    read_asked,
    read_people,
)
from marl.reports.statistics import (
    Bin,
    Pair,
    Share,
    against_learned,
    against_returns,
    agreement,
    calibration_error,
    confident_agreement,
    has_probabilities,
    learned_probability,
    quantile,
    reliability,
)
from marl.utils.checkpoint import list_checkpoints, load_checkpoint, restoring
from marl.utils.plugins import identity_of
from marl.utils.text import one_line, printable

NO_CHECKPOINT = (
    "The run has no checkpoint yet: what training keeps, and what the reward has learned, is not "
    "known."
)
MYOPIC = "preferences.teacher.myopia is below 1: returns are those that the myopic teacher sees."
NOTHING_ASKED = "The answer cache holds nothing of this run."
NO_ANSWERS = (
    "A labeller that is asked about every pair anew leaves no answers. --ask-again asks it about "
    "the kept episodes now."
)
UNKNOWN = "-"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `marl labels` shows."""

    run: str
    env: str
    algorithm: str
    labeller: str
    cache: str
    """The language model's answer cache; empty for other labellers."""
    has_prices: bool
    judges: tuple[JudgeReport, ...]
    kept: Kept | None
    pairs: tuple[Pair, ...]
    """All that was asked of a language model, otherwise what is kept."""
    people: tuple[Person, ...]
    notes: tuple[str, ...]

    @property
    def bins(self) -> list[Bin]:
        """The reliability of the answers; empty where they are no probabilities."""
        labels = [pair.label for pair in self.pairs]
        if not has_probabilities(labels):
            return []
        return reliability(labels, [pair.gap for pair in self.pairs])

    @property
    def learned(self) -> Share:
        """Pairs on which the learned reward takes the answer's side."""
        gaps = [pair.learned - 0.5 for pair in self.pairs]
        return agreement([pair.label for pair in self.pairs], gaps)

    def surprises(self, most: int) -> dict[str, list[Pair]]:
        """Return the most surprising pairs, by what they speak against."""
        found = {
            "Most sure against the return": against_returns(self.pairs, most),
            "Farthest from the learned reward": against_learned(self.pairs, most),
        }
        return {title: pairs for title, pairs in found.items() if pairs}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A table: its first column names what the others hold."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def audit(
    run: Path,
    *,
    cache: Path | None = None,
    ask_again: bool = False,
    skip_damaged: bool = False,
) -> Report:
    """Return what is known of a run's answers, or raise `ConfigError` where there is nothing.

    `cache` is where the language model's answers are now, if not where the settings say.
    `skip_damaged` leaves damaged files of the people's dataset out, with a warning.
    """
    config = load_run_config(run)
    if not config.learns_from_labels:
        raise ConfigError(
            f"{run}: algorithm {config.algorithm!r} learns no reward from labels, so none "
            "were asked for; imap, slf, ipl and sl do"
        )
    notes = [MYOPIC] if config.preferences.teacher.myopia < 1.0 else []
    saved = None
    if list_checkpoints(run / "checkpoints"):
        state = load_checkpoint(run / "checkpoints")[1]
        with restoring(run):
            saved = SavedRun(state, run)
    else:
        notes.append(NO_CHECKPOINT)
    is_llm = config.preferences.labeller == "llm"
    path = cache or Path(config.preferences.llm.cache)
    asked = _asked_by(path, run) if is_llm else None
    with restoring(run):
        kept = None if saved is None else saved.kept(ask_again=ask_again)
    if asked is not None and not asked.pairs and not asked.costs:
        notes.append(NOTHING_ASKED)
    elif kept is not None and asked is None and not kept.pairs and not kept.is_asked_now:
        notes.append(NO_ANSWERS)
    pairs: Sequence[Pair] = () if kept is None else kept.pairs
    if asked is not None:
        scores = {} if saved is None else saved.scores
        pairs = [replace(p, learned=learned_probability(p, scores)) for p in asked.pairs]
    return Report(
        run=printable(str(run)),
        env=one_line(config.env.name),
        algorithm=config.algorithm,
        labeller=one_line(config.preferences.labeller),
        cache=printable(str(path)) if is_llm else "",
        has_prices=config.preferences.llm.prompt_price + config.preferences.llm.reply_price > 0,
        judges=() if asked is None else tuple(judges(asked)),
        kept=kept,
        pairs=tuple(pairs),
        people=read_people(run / "people", skip_damaged=skip_damaged),
        notes=tuple(notes),
    )


def _asked_by(path: Path, run: Path) -> CachedAnswers:
    """Return what the answer cache holds of a run, or raise `ConfigError` that says where it is."""
    if path.is_file():
        return read_asked(path, identity_of(run))
    seen_from = "" if path.is_absolute() else f" seen from {Path.cwd()}"
    raise ConfigError(
        f"{run}: its answers are expected in {path}, where preferences.llm.cache or --cache says, "
        f"but there is no such file{seen_from}; name it by --cache, wherever it is now"
    )


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


def judge_rows(judge: JudgeReport, *, has_prices: bool) -> list[tuple[str, str]]:
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


def to_json(report: Report, most: int) -> dict[str, Any]:
    """Return all figures and the most surprising pairs; what is not known is null."""
    return {
        "run": report.run,
        "env": report.env,
        "algorithm": report.algorithm,
        "labeller": report.labeller,
        "cache": report.cache or None,
        "asked": [_judge_to_json(judge) for judge in report.judges],
        "kept": None if report.kept is None else _kept_to_json(report.kept),
        "reliability": plain(report.bins),
        "calibration_error": plain(calibration_error(report.bins)),
        "learned_reward_agrees": plain(report.learned),
        "people": plain(report.people),
        "surprises": {
            title: [_pair(pair) for pair in pairs]
            for title, pairs in report.surprises(most).items()
        },
        "notes": list(report.notes),
    }


def plain(value: Any) -> Any:
    """Return nested values as JSON knows them; a share with its interval, NaN as null."""
    if isinstance(value, Share):
        low, high = value.interval
        counts = {"part": value.part, "of": value.whole}
        return counts | plain({"share": value.value, "low": low, "high": high})
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _judge_to_json(judge: JudgeReport) -> dict[str, Any]:
    figures: dict[str, Any] = plain(judge)
    figures["calibration_error"] = plain(calibration_error(judge.bins))
    if judge.cost is not None:
        seconds = judge.cost.seconds
        del figures["cost"]["seconds"]
        figures["cost"] |= {
            "calls": judge.cost.calls,
            "seconds_median": plain(quantile(seconds, 0.5)),
            "seconds_p95": plain(quantile(seconds, 0.95)),
        }
    return figures


def _kept_to_json(kept: Kept) -> dict[str, Any]:
    figures: dict[str, Any] = plain(dataclasses.replace(kept, pairs=()))
    figures["pairs"] = len(kept.pairs)
    return figures | _agreements(kept.pairs)


def _agreements(pairs: Sequence[Pair]) -> dict[str, Any]:
    labels, gaps = [pair.label for pair in pairs], [pair.gap for pair in pairs]
    return {
        "ties": labels.count(0.5),
        "agreement": plain(agreement(labels, gaps)),
        "confident": plain(confident_agreement(labels, gaps)),
        "learned": plain(agreement(labels, [pair.learned - 0.5 for pair in pairs])),
    }


def _pair(pair: Pair) -> dict[str, Any]:
    names = ("label", "returns", "numbers", "learned", "prompt", "model", "form", "texts")
    return {name: plain(getattr(pair, name)) for name in names}


def show(report: Report, console: Console) -> None:
    """Print the tables and notes of a report."""
    title = f"{report.run}: {report.algorithm} on {report.env}, labeller {report.labeller}"
    console.print(Text(title, "bold"), soft_wrap=True)
    for section in sections(report):
        console.print(table(section))
    for note in report.notes:
        console.print(Text(f"note: {note}", "yellow"), soft_wrap=True)


def table(section: Section) -> Table:
    """Return a section as a table; foreign text in it is taken literally."""
    made = Table(title=Text(section.title), title_justify="left", title_style="bold")
    for index, heading in enumerate(section.headings):
        made.add_column(Text(heading), overflow="fold", no_wrap=index == 0)
    for row in section.rows:
        cells: list[RenderableType] = [Text(cell) for cell in row]
        made.add_row(*cells)
    return made
