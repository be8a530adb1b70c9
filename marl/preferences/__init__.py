"""Preferences between finished episodes: who labels them, which are asked, what is kept."""

from marl.preferences.describe import describe, describe_whole
from marl.preferences.factory import make_labeller
from marl.preferences.labellers import (
    Cascade,
    EpisodePairs,
    FactRule,
    FactsLabeller,
    Labeller,
    ReturnLabeller,
    Vote,
)
from marl.preferences.pipeline import FeedbackPipeline
from marl.preferences.teachers import NoisyTeacher

__all__ = [
    "Cascade",
    "EpisodePairs",
    "FactRule",
    "FactsLabeller",
    "FeedbackPipeline",
    "Labeller",
    "NoisyTeacher",
    "ReturnLabeller",
    "Vote",
    "describe",
    "describe_whole",
    "make_labeller",
]
