"""The report as plain JSON, for scripts."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from marl.audit.from_checkpoint import Kept
from marl.audit.judge import Judge
from marl.audit.pairs import Pair
from marl.audit.report import Report
from marl.audit.statistics import (
    Share,
    agreement,
    calibration_error,
    confident_agreement,
    quantile,
)


def to_json(report: Report, most: int) -> dict[str, Any]:
    """Return all figures and the most surprising pairs; what is not known is null."""
    return {
        "run": report.run,
        "env": report.env,
        "algorithm": report.algorithm,
        "labeller": report.labeller,
        "store": report.store or None,
        "asked": [_judge(judge) for judge in report.judges],
        "kept": None if report.kept is None else _kept(report.kept),
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


def _judge(judge: Judge) -> dict[str, Any]:
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


def _kept(kept: Kept) -> dict[str, Any]:
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
