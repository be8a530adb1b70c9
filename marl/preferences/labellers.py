"""Labellers: pairs of episodes in, P(first preferred) out.

What a labeller is and what else it may do; the rules that come with the package (`ReturnLabeller`,
`FactsLabeller`); labellers made of others (`Cascade`, `Vote`); and how any of them is asked, its
answers checked and its state saved.

Axes: M episodes, B pairs, D of them chosen, P kept episodes, V voters.
"""

import difflib
import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, ParamSpec, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs import EnvSpec
from envs.plugins import place_of
from marl import UserError
from marl.config import ConfigError
from marl.data.replay import ReplayBuffer
from marl.data.types import Episodes
from marl.utils.plugins import PluginError
from marl.utils.text import error_text

P = ParamSpec("P")
T = TypeVar("T")

NEIGHBOURS = 5
"""A final state is as novel as it is far from its fifth nearest neighbour."""


@dataclass(frozen=True, kw_only=True)
class EpisodePairs:
    """B pairs to compare: row b of `first` against row b of `second`."""

    first: Episodes
    second: Episodes

    def rows(self, index: Int64[Tensor, "D"] | Bool[Tensor, "B"]) -> "EpisodePairs":
        """Return some of these pairs."""
        return EpisodePairs(first=self.first.rows(index), second=self.second.rows(index))

    def __len__(self) -> int:
        return len(self.first)


@runtime_checkable
class Labeller(Protocol):
    """Any callable from pairs to labels; a plain function will do.

    What it does not know it answers with NaN. An exception stops the run with its state saved.
    Training waits for the answers, up to ``preferences.deadline``.
    """

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        """Return (B,) P(first preferred): 1 first, 0 second, 0.5 tie, NaN no answer."""
        ...


@runtime_checkable
class CompositeLabeller(Protocol):
    """A labeller made of others, whose state is saved and whose metrics are reported, too."""

    @property
    def labellers(self) -> tuple[Labeller, ...]:
        """The labellers it asks."""
        ...


@runtime_checkable
class HasState(Protocol):
    """A labeller that changes during training; saved and restored with the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, arrays, numbers, strings and nested dicts."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state_dict()`."""
        ...


@runtime_checkable
class HasMetrics(Protocol):
    """A labeller with something to report each iteration."""

    def metrics(self) -> dict[str, float]:
        """Return numbers by name; they are written as ``labeller/<name>``."""
        ...


@runtime_checkable
class IsSelective(Protocol):
    """A labeller that can be asked about some episodes only."""

    def can_judge(self, episodes: Episodes) -> Bool[Tensor, "M"]:
        """Return which of M episodes it may be asked about."""
        ...


@dataclass(frozen=True, kw_only=True)
class LateAnswers:
    """Answers to B pairs that were asked about before."""

    first: Int64[Tensor, "B"]
    """Numbers of episodes in the run."""
    second: Int64[Tensor, "B"]
    labels: Float[Tensor, "B"]
    """In place of whatever was answered to the pair before; NaN: none will come, or none stands
    any more."""


@runtime_checkable
class AnswersLate(Protocol):
    """A labeller whose answers may come long after the question: its NaN means not yet."""

    def late_answers(self, replay: ReplayBuffer) -> LateAnswers:
        """Return what has been answered since the last call, about whole episodes of `replay`."""
        ...


@dataclass(frozen=True, kw_only=True)
class ReturnLabeller:
    """Prefers the larger episodic return.

    Returns within `margin` of each other tie. `sharpness` k > 0 softens the label to
    sigmoid(k (G_1 - G_2) / std G), with the deviation over the returns of the pairs. A `discount`
    below 1 takes G discount^(T - 1) for G: what is paid in the last step, seen from the first.
    """

    margin: float = 0.0
    sharpness: float = 0.0
    discount: float = 1.0

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        first, second = self._values(pairs.first), self._values(pairs.second)
        gap = first - second
        tie = gap.abs() <= self.margin
        if self.sharpness > 0.0:
            scale = torch.cat((first, second)).std(correction=0).clamp(min=1e-8)
            labels = torch.sigmoid(self.sharpness * gap / scale)
        else:
            labels = (gap > 0).to(torch.float32)
        return labels.masked_fill(tie, 0.5)

    def _values(self, episodes: Episodes) -> Float[Tensor, "B"]:
        """Return what each episode is worth at its beginning."""
        return episodes.returns * self.discount ** (episodes.lengths - 1)


@dataclass(frozen=True, kw_only=True)
class FactRule:
    """One number to compare episodes by."""

    name: str
    value: Callable[[Episodes], Tensor]
    """From M episodes to (M,)."""
    sign: float
    """1: more is better; -1: less is."""
    margin: float = 0.0
    """Values no farther apart than this are equal."""


@dataclass(frozen=True, kw_only=True)
class FactsLabeller:
    """Compares by the first rule, where that ties by the second, and so on: lexicographic.

    An episode pair that all rules call equal is a tie.
    """

    rules: tuple[FactRule, ...]

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        labels = torch.full_like(pairs.first.returns, 0.5)
        for rule in self.rules:
            gap = rule.sign * (rule.value(pairs.first) - rule.value(pairs.second))
            decides = (labels == 0.5) & (gap.abs() > rule.margin)
            labels = torch.where(decides, (gap > 0).to(labels.dtype), labels)
        return labels


def facts_labeller(
    spec: EnvSpec, names: tuple[str, ...], margins: tuple[float, ...] = (), *, setting: str
) -> FactsLabeller:
    """Return the rule over some facts, each named as ``won``, ``time+`` or ``time-``.

    The sign may also come first, ``-time``, which a command line takes for a flag.

    `setting` names in errors where the names were read from.
    """
    if not names:
        raise ConfigError(f"{setting}: names no fact, so every pair would tie; name at least one")
    margins = margins or (0.0,) * len(names)
    rules = [_rule(spec, name, setting) for name in names]
    return FactsLabeller(
        rules=tuple(
            FactRule(name=rule.name, value=rule.value, sign=rule.sign, margin=margin)
            for rule, margin in zip(rules, margins, strict=True)
        )
    )


def _rule(spec: EnvSpec, signed: str, setting: str) -> FactRule:
    """Return the rule that one signed name stands for."""
    name, sign = _name_and_sign(signed, setting)
    directions = {fact.name: fact.higher_is_better for fact in spec.facts}
    if name in directions:
        value, higher = _fact([*directions].index(name)), directions[name]
    elif name in COMPUTED:
        value, higher = COMPUTED[name]
    else:
        known = [*directions, *COMPUTED]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ConfigError(
            f"{setting}: environment {spec.name} tells no fact {name!r}{hint} It can be judged by "
            f"{', '.join(known)}"
        )
    if sign:
        higher = sign == "+"
    if higher is None:
        raise ConfigError(
            f"{setting}: neither more nor less of {name!r} is better by itself; write '{name}+' "
            f"or '{name}-'"
        )
    return FactRule(name=name, value=value, sign=1.0 if higher else -1.0)


def _name_and_sign(signed: str, setting: str) -> tuple[str, str]:
    """Return a name and its "+" or "-", which stands before or after it; "" where it has none."""
    name = signed.strip("+-")
    sign = signed.replace(name, "", 1)
    if len(sign) > 1:
        raise ConfigError(
            f"{setting}: {signed!r} has {len(sign)} signs, expected at most one, as in '{name}+' "
            f"or '{name}-'"
        )
    return name, sign


def _fact(column: int) -> Callable[[Episodes], Tensor]:
    """Return the function that reads one column of the facts."""
    return lambda episodes: episodes.facts[:, column]


def novelty(episodes: Episodes) -> Float[Tensor, "M"]:
    """Return how far each final state is from the others that are kept.

    Euclidean distance to the fifth nearest (the farthest, of fewer), every feature in its
    deviations over the kept episodes.
    """
    replay = episodes.replay
    known = torch.cat((replay.available(), replay.available(held_out=True)))
    others = replay.final_states(known).to(torch.float32)  # pictures are bytes
    scale = others.std(dim=0, correction=0)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    mine, places = episodes.numbers.unique(return_inverse=True)
    distances = torch.cdist(replay.final_states(mine) / scale, others / scale)
    nearest = min(NEIGHBOURS + 1, len(known))  # the nearest of all is the episode itself
    return distances.kthvalue(nearest, dim=1).values[places]


COMPUTED: dict[str, tuple[Callable[[Episodes], Tensor], bool | None]] = {
    "return": (lambda episodes: episodes.returns, True),
    "length": (lambda episodes: episodes.lengths.to(torch.float32), None),
    "novelty": (novelty, True),
}
"""What is known of episodes of any environment, and whether more of it is better."""


class Cascade:
    """Asks the first labeller, and each next one only about what those before left open.

    Open is a pair without an answer (NaN) if `pass_unanswered`, and one called a tie if
    `pass_ties`; that tie stands where no later one answers.
    """

    def __init__(
        self, *labellers: Labeller, pass_unanswered: bool = True, pass_ties: bool = False
    ) -> None:
        if not labellers:
            raise ValueError("Cascade got no labellers; give at least one")
        if not (pass_unanswered or pass_ties):
            raise ValueError(
                "Cascade got pass_unanswered = False and pass_ties = False, which ask none but the "
                "first labeller; set one of them"
            )
        self.labellers = labellers
        """In the order in which they are asked."""
        self.pass_unanswered = pass_unanswered
        self.pass_ties = pass_ties
        self.asked = [0] * len(labellers)
        """Pairs that each was asked about so far."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        labels = torch.full_like(pairs.first.returns, torch.nan)
        is_open = torch.ones_like(labels, dtype=torch.bool)
        for stage, labeller in enumerate(self.labellers):
            rows = is_open.nonzero().squeeze(-1)
            if len(rows) == 0:
                break
            self.asked[stage] += len(rows)
            answers = checked_labels(labeller, name_of(labeller), pairs.rows(rows))
            answers = answers.to(labels.device)
            labels[rows] = torch.where(answers.isnan(), labels[rows], answers)
            is_open = (labels.isnan() & self.pass_unanswered) | ((labels == 0.5) & self.pass_ties)
        return labels

    def metrics(self) -> dict[str, float]:
        """Return how many pairs each labeller was asked about so far."""
        return {f"cascade_{stage}_asked": float(n) for stage, n in enumerate(self.asked)}

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"asked": list(self.asked)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.asked = list(state["asked"])


class Vote:
    """Asks every labeller and answers by their mean; abstains where too few answer."""

    def __init__(self, *labellers: Labeller, at_least: int = 1) -> None:
        if not 1 <= at_least <= len(labellers):
            raise ValueError(
                f"Vote got {len(labellers)} labellers and at_least = {at_least}; it takes "
                "from 1 to all of them"
            )
        self.labellers = labellers
        """The voters."""
        self.at_least = at_least
        """Answers needed."""

    def __call__(self, pairs: EpisodePairs) -> Float[Tensor, "B"]:
        votes: Float[Tensor, "V B"] = torch.stack(
            [
                checked_labels(labeller, name_of(labeller), pairs).to(pairs.first.returns.device)
                for labeller in self.labellers
            ]
        )
        enough = (~votes.isnan()).sum(dim=0) >= self.at_least
        return votes.nanmean(dim=0).masked_fill(~enough, torch.nan)


def iter_labellers(labeller: Labeller) -> Iterator[Labeller]:
    """Yield a labeller and, depth first, all that it is made of."""
    yield labeller
    if isinstance(labeller, CompositeLabeller):
        for child in labeller.labellers:
            yield from iter_labellers(child)


def labeller_state(labeller: Labeller) -> list[dict[str, Any]]:
    """Return the states of a labeller and its parts that have one."""
    return [
        called(name_of(child), "asked for its state", child.state_dict)
        for child in iter_labellers(labeller)
        if isinstance(child, HasState)
    ]


def load_labeller_state(labeller: Labeller, states: list[dict[str, Any]]) -> None:
    """Continue from `labeller_state()` of a labeller made of the same parts."""
    stateful = [child for child in iter_labellers(labeller) if isinstance(child, HasState)]
    if len(stateful) != len(states):
        raise ConfigError(
            f"the saved run has {len(states)} labellers with a state, this one {len(stateful)}; "
            "resume with the labeller it was trained with"
        )
    for child, state in zip(stateful, states, strict=True):
        called(name_of(child), "given its state back", child.load_state_dict, state)


def labeller_metrics(labeller: Labeller) -> dict[str, float]:
    """Return what a labeller and its parts report, as ``labeller/<name>``."""
    return {
        f"labeller/{name}": value
        for child in iter_labellers(labeller)
        if isinstance(child, HasMetrics)
        for name, value in called(name_of(child), "asked for its metrics", _numbers, child).items()
    }


def _numbers(labeller: HasMetrics) -> dict[str, float]:
    return {name: float(value) for name, value in labeller.metrics().items()}


def name_of(labeller: Labeller) -> str:
    """Return what to call a labeller in a message."""
    own = getattr(labeller, "__qualname__", type(labeller).__name__)
    return str(own)


def called(name: str, doing: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a labeller's function returns; whatever it raises comes back as a `PluginError`.

    That says where it was raised, and stops the run with its state saved. Also a `SystemExit`: a
    labeller does not decide that a program ends. `doing` says what the labeller was doing.
    """
    try:
        return function(*args, **kwargs)
    except UserError:  # it says what to do already
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(
            f"labeller {name} raised {error_text(error)} ({place_of(error)}) when {doing}"
        ) from error


def checked_labels(labeller: Labeller, name: str, pairs: EpisodePairs) -> Float[Tensor, "B"]:
    """Return what a labeller answers, or raise `PluginError` if it fails or breaks its promise.

    NumPy arrays, lists, truth values and whole numbers are labels too; a gradient is cut off.
    """
    count = len(pairs)
    doing = f"asked about {count} pairs; return NaN where it has no answer"
    answer = called(name, doing, labeller, pairs)
    labels = _tensor(answer)
    if labels is None:
        raise PluginError(
            f"labeller {name} returned {type(answer).__name__}, expected a torch.Tensor, an array "
            f"or a list of {count} numbers, one per pair"
        )
    if labels.shape != (count,):
        raise PluginError(
            f"labeller {name} returned shape {tuple(labels.shape)} for {count} pairs; "
            f"return shape ({count},), NaN where it has no answer"
        )
    bad = ~(labels.isnan() | ((labels >= 0.0) & (labels <= 1.0)))
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise PluginError(
            f"labeller {name} returned {round(float(labels[index]), 6)} for pair {index}, expected "
            "P(first preferred) in [0, 1], or NaN where it has no answer"
        )
    return labels


def _tensor(answer: object) -> Tensor | None:
    """Return an answer as a float32 tensor, None where its meaning is not plain.

    In a list, None is no answer.
    """
    try:
        if isinstance(answer, list | tuple):
            if any(isinstance(label, str | bytes) for label in answer):
                return None
            answer = np.array([math.nan if label is None else float(label) for label in answer])
        if not isinstance(answer, Tensor):
            array = np.asarray(answer)
            if array.dtype.kind not in "buif":
                return None
            answer = torch.from_numpy(array.astype(np.float64))
        return None if answer.is_complex() else answer.detach().to(torch.float32)
    except Exception:  # of a type that only looks like an array
        return None


@contextmanager
def time_limit(seconds: float, name: str) -> Iterator[None]:
    """Raise `PluginError` in what runs inside, once it has taken so many seconds; 0: never.

    The system's timer interrupts Python code and waits of the main thread; compiled code that
    never returns it cannot, nor other threads, nor anything on Windows.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if seconds <= 0.0 or not is_main or not hasattr(signal, "setitimer"):
        yield
        return

    def expire(number: int, frame: FrameType | None) -> None:
        place = f" ({frame.f_code.co_filename}, line {frame.f_lineno})" if frame else ""
        raise PluginError(
            f"labeller {name} has not answered after {seconds:g} s{place}; give it a deadline of "
            "its own and return NaN where it has no answer, or raise preferences.deadline (0: "
            "wait for ever)"
        )

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)
