"""Everything an audit found about one run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from marl.audit.from_checkpoint import Kept, Saved
from marl.audit.from_people import Person, read_people
from marl.audit.from_store import Asked, read_asked
from marl.audit.judge import Judge, judges
from marl.audit.pairs import Pair, against_learned, against_returns, learned_probability
from marl.audit.statistics import Bin, Share, agreement, has_probabilities, reliability
from marl.checkpoint import list_checkpoints, load_checkpoint
from marl.config import ConfigError
from marl.config.files import load_config
from marl.preferences.describe import one_line
from marl.runs import identity_of

WHOLE_STORE = (
    "The store was written before it noted which run a pair belongs to, so all its pairs are here, "
    "those of other runs too."
)
NO_CHECKPOINT = (
    "The run has no checkpoint yet: what training keeps, and what the reward has learned, is not "
    "known."
)
MYOPIC = "preferences.teacher.myopia is below 1: returns are those that the myopic teacher sees."
NO_ANSWERS = (
    "A labeller that is asked about every pair anew leaves no answers. --ask-again asks it about "
    "the kept episodes now."
)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `marl labels` shows."""

    run: str
    env: str
    algorithm: str
    labeller: str
    store: str
    """The language model's store of answers; empty for other labellers."""
    has_prices: bool
    judges: tuple[Judge, ...]
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


def audit(run: Path, *, store: Path | None = None, ask_again: bool = False) -> Report:
    """Return what is known of a run's answers, or raise `ConfigError` where there is nothing.

    `store` is where the language model's answers are now, if not where the settings say.
    """
    if not (run / "config.toml").exists():
        raise ConfigError(f"{run} is not a run folder: it has no config.toml")
    config = load_config(run / "config.toml")
    if not config.learns_reward:
        raise ConfigError(
            f"{run}: algorithm {config.algorithm!r} learns no reward, so nobody was asked "
            "anything; imap, slf, ipl and sl do"
        )
    notes = [MYOPIC] if config.preferences.teacher.myopia < 1.0 else []
    saved = None
    if list_checkpoints(run / "checkpoints"):
        saved = Saved(load_checkpoint(run / "checkpoints")[1], run)
    else:
        notes.append(NO_CHECKPOINT)
    is_llm = config.preferences.labeller == "llm"
    path = store or Path(config.preferences.llm.store)
    asked = _asked(path, run) if is_llm else None
    kept = None if saved is None else saved.kept(ask_again=ask_again)
    if asked is not None and asked.is_whole_store:
        notes.append(WHOLE_STORE)
    elif kept is not None and asked is None and not kept.pairs and not kept.is_asked_now:
        notes.append(NO_ANSWERS)
    pairs: Sequence[Pair] = () if kept is None else kept.pairs
    if asked is not None:
        scores = {} if saved is None else saved.scores
        pairs = [replace(p, learned=learned_probability(p, scores)) for p in asked.pairs]
    return Report(
        run=str(run),
        env=one_line(config.env.name),
        algorithm=config.algorithm,
        labeller=one_line(config.preferences.labeller),
        store=str(path) if is_llm else "",
        has_prices=config.preferences.llm.prompt_price + config.preferences.llm.reply_price > 0,
        judges=() if asked is None else tuple(judges(asked)),
        kept=kept,
        pairs=tuple(pairs),
        people=read_people(run / "people"),
        notes=tuple(notes),
    )


def _asked(path: Path, run: Path) -> Asked:
    """Return what the run's store holds, or raise `ConfigError` that says where it should be."""
    if path.is_file():
        return read_asked(path, identity_of(run))
    seen_from = "" if path.is_absolute() else f" seen from {Path.cwd()}"
    raise ConfigError(
        f"{run}: its answers are expected in {path}, where preferences.llm.store or --store says, "
        f"but there is no such file{seen_from}; name it by --store, wherever it is now"
    )
