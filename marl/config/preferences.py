"""Settings of the preferences: which episodes are compared, and by whom."""

import math
from dataclasses import dataclass, field
from typing import Literal

from marl.config.llm import LlmConfig
from marl.config.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Simulated human error around the labeller (Lee et al. 2021, arXiv 2111.03026).

    Returns are measured in standard deviations over the kept episodes, so that the same numbers
    mean the same on every task. Asked twice about a pair, the teacher says the same. The
    defaults add no error.
    """

    rationality: float = math.inf
    """beta: the answer is turned round with probability sigmoid(-beta |G_1 - G_2| / std G), which
    is the Boltzmann choice; inf never errs, 0 guesses."""
    mistakes: float = 0.0
    """Probability that an answer is turned round, however clear the pair."""
    skip_below: float = -math.inf
    """No answer where both returns lie below mean G + this many deviations."""
    tie_within: float = 0.0
    """Tie where the returns differ by less than this many deviations."""
    myopia: float = 1.0
    """Benchmarks only: discount by which a step weighs less than the next one in the return that
    the teacher judges by, a sum of the hidden dense rewards. 1: the true return."""


@dataclass(frozen=True, kw_only=True)
class PeopleConfig:
    """People who answer on the page of ``marl label RUN``, while the run trains."""

    wait: bool = False
    """Whether training stands still while a question is open, rather than go on and use the
    answers as they come."""
    filmed_copies: int = 8
    """Copies that are filmed; questions are about their episodes only. Fewer save time."""
    task: str = ""
    """What the team should achieve, in a sentence or two; shown on the page."""


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """Which episodes are compared, and by whom."""

    labeller: str = "return"
    """``return`` (larger episodic return wins), ``outcome`` (the fact ``won``), ``facts`` (see
    `facts`), ``llm`` (a language model, see `llm`), ``model`` (a reward learned before, see
    `model`), ``people`` (who answer on a page, see `people`), or an import path: ``my_labels:f``
    is the labeller (a class is first made), and ``my_labels:make()`` returns it."""
    deadline: float = 600.0
    """Seconds after which a labeller of your own (an import path) that has not answered stops the
    run, its state saved; 0: never."""
    margin: float = 0.0
    """Returns closer than this are a tie."""
    sharpness: float = 0.0
    """k > 0 gives soft labels sigmoid(k (G_1 - G_2) / std G); 0 gives hard ones."""
    discount: float = 1.0
    """Compare G discount^(T - 1), what a return paid in the last of T steps is worth at the first.
    Of two equal losses, such as a fall, the later one is then better. The learned scores are plain
    sums of R all the same, and the policy discounts R once more. 1: the plain return."""
    facts: tuple[str, ...] = ()
    """What ``facts`` compares, the most important first; a later one decides where the earlier
    tie. Facts of the environment, or ``return``, ``length``, ``novelty`` (of the final state).
    ``time+`` says that more of it is better, ``time-`` that less is; files also take ``+time`` and
    ``-time``, which on the command line would read as a flag."""
    fact_margins: tuple[float, ...] = ()
    """One per entry of `facts`: closer than this is a tie. Empty: only equal ones are."""
    tie_break: tuple[str, ...] = ()
    """What decides where the labeller says tie, in the form of `facts`, e.g. while no early
    return differs from another."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    queries_per_iteration: int = 0
    """Pairs asked per iteration in which an episode ended, and kept; 0: the labeller is free and
    labels every pair."""
    schedule: Literal["constant", "hyperbolic"] = "constant"
    """Hyperbolic: `queries_per_iteration` / (1 + 10 t), where t is the share of the run done."""
    max_labels: int = 0
    """Most pairs asked in the whole run, answered or not; 0: no limit."""
    query: Literal[
        "uniform", "recent_with_older", "newest_share", "stratified", "disagreement", "entropy"
    ] = "newest_share"
    """How episodes are chosen: uniformly, each recent one against an older one, `newest_share` of
    them from the newest rollout, or every range of returns alike. Disagreement and entropy ask
    the `newest_share` pairs on which `committee` reward models disagree or are undecided most."""
    committee: int = 3
    """Reward models behind ``disagreement`` and ``entropy``, the run's own among them."""
    candidates: int = 10
    """Pairs drawn for each that ``disagreement`` or ``entropy`` asks."""
    retire_after: int = 0
    """Environment steps after which an answer is not used any more; 0: as long as both episodes
    are kept."""
    newest_share: float = 0.5
    """Share of a batch that comes from the newest finished episodes."""
    buffer_pairs: int = 10_000
    """Answered pairs that are kept."""
    holdout_every: int = 8
    """Every so many-th episode is held out and only measures preference accuracy."""
    store_steps: int = 256_000
    """Steps of experience that are kept."""
    store_episodes: int = 2_048
    """Finished episodes that are kept."""
    llm: LlmConfig = field(default_factory=LlmConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)

    @property
    def labellers(self) -> tuple[str, ...]:
        """The labeller and, where it may take over at a cap, the language model's fallback."""
        has_fallback = self.labeller == "llm" and self.llm.at_cap == "fallback"
        return (self.labeller, self.llm.fallback) if has_fallback else (self.labeller,)
