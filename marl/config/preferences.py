"""Settings of the labellers: the section ``[preferences]`` and those within it."""

import math
from dataclasses import field
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from marl.config.validation import ConfigError, Range, settings

AskForm = Literal["pointwise", "pairwise"]

LABELLERS: dict[str, str] = {
    "return": "marl.preferences.factory:return_labeller",
    "outcome": "marl.preferences.factory:outcome_labeller",
    "facts": "marl.preferences.factory:listed_facts_labeller",
    "llm": "",
    "model": "marl.preferences.factory:model_labeller",
    "contrast": "marl.preferences.factory:contrast_labeller",
    "people": "",
    "python": "",
}
"""What makes each shipped labeller of (PreferenceConfig, EnvSpec), by `PreferenceConfig.labeller`.

Those without an import path need more of the run: `marl.preferences.factory` makes them itself.
"""


def check_url(url: str, origin: str) -> None:
    """Raise `ConfigError` for an endpoint that is none, or that could hold a secret.

    An endpoint is recorded with the run. What may be a secret is not shown; `origin` says where
    the endpoint was read.
    """
    if any(sign in url for sign in "@?#"):
        raise ConfigError(
            f"{origin}: holds a user, a password, a query or a fragment, and would be recorded "
            "with the run; put a key into the environment variable that "
            "preferences.llm.api_key_env names"
        )
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url or not url.isprintable() or " " in url:
        raise ConfigError(f"{origin}: got {url!r}, expected http://... or https://...")


def _checked(url: str) -> str:
    if url:
        check_url(url, "preferences.llm.base_url")
    return url


@settings("preferences.llm.")
class LlmConfig:
    """A language model behind any endpoint that speaks OpenAI's chat protocol.

    The key is read from the environment variable `api_key_env` and never written anywhere.
    """

    base_url: Annotated[str, AfterValidator(_checked)] = ""
    """Endpoint, e.g. ``http://127.0.0.1:8080/v1`` for a local server; empty: OpenAI's own."""
    model: str = ""
    """Name of the model as the server lists it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a local server usually needs none."""
    ask: AskForm = "pointwise"
    """Pointwise: grade each episode alone and compare the grades; no position to be biased to, one
    call an episode. Pairwise: show both, in both orders; two calls a pair."""
    prompt: str = ""
    """Template: a shipped name or the path of a TOML file; empty: the shipped one for `ask`."""
    task: str = ""
    """What the team should achieve, in a sentence or two; becomes part of every question."""
    describe: str = "final"
    """``final`` (how an episode ended: the environment's named numbers, its length; the return
    where there are none), ``whole`` (also what happened on the way), or an import path of a
    function from `Episodes` to a list of texts."""
    margin: Annotated[float, Range(0, 0.5)] = 0.05
    """No answer where |P - 0.5| is smaller."""
    below_margin: Literal["abstain", "tie"] = "abstain"
    """Whether such a pair has no answer or counts as a tie."""
    disagreement: Literal["average", "abstain", "tie"] = "average"
    """Pairwise, when the two orders prefer different episodes: average their log-odds, which takes
    a constant bias out (a model that always says "A" disagrees always), or give no answer."""
    min_mass: Annotated[float, Range(0, 1)] = 0.5
    """No answer where the choices together carry less of the probability (or of the votes)."""
    votes: Annotated[int, Range(1, 1000)] = 5
    """Samples of each question where the server gives no log-probabilities."""
    vote_temperature: Annotated[float, Range(0, 2)] = 1.0
    """Temperature of those samples; questions with log-probabilities are asked at 0."""
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    """Sent with every question if the server takes one; sample k gets `seed` + k."""
    max_tokens: Annotated[int, Range(1, 1e6)] = 64
    """Most tokens of a reply that is a vote (llama.cpp wrote a one-letter JSON answer in up to 30);
    raise it to some thousands for a model that thinks first."""
    soft_tokens: Annotated[int, Range(1, 1e6)] = 2
    """Most tokens of a reply of which only the log-probabilities at the answer are read."""
    thinking: Literal["default", "off", "low", "medium", "high"] = "default"
    """Off asks the server to switch thinking off, the levels to limit it, default says nothing."""
    top_logprobs: Annotated[int, Range(2, 200)] = 20
    """Candidates asked for at the answer's token; OpenAI's own cap is 20."""
    use_grammar: bool = False
    """Whether a server without JSON schemas is tried with a grammar (llama.cpp)."""
    concurrency: Annotated[int, Range(1, 1024)] = 8
    """Most questions under way at once."""
    timeout: Annotated[float, Range(1e-3, 3600)] = 30.0
    """Seconds for one attempt, from its first to its last byte."""
    deadline: Annotated[float, Range(1e-3, 1e5)] = 90.0
    """Seconds for one question with all its attempts and waits."""
    attempts: Annotated[int, Range(1, 100)] = 4
    """Most attempts of one question."""
    backoff: Annotated[float, Range(0, 3600)] = 0.5
    """Seconds before the second attempt; doubles with each, half of it at random."""
    max_backoff: Annotated[float, Range(0, 3600)] = 20.0
    """Longest wait between two attempts, unless the server asks for more."""
    breaker_failures: Annotated[int, Range(1, 1e6)] = 5
    """Failures in a row after which the server is left alone for a while."""
    breaker_seconds: Annotated[float, Range(0, 1e6)] = 60.0
    """How long it is left alone before one question tries it again."""
    max_calls: Annotated[int, Range(0, 1e12)] = 0
    """Cap on attempts, summed over the life of the cache; 0: none."""
    max_total_tokens: Annotated[int, Range(0, 1e15)] = 0
    """Cap on tokens of questions and replies together; 0: none."""
    max_cost: Annotated[float, Range(0, 1e12)] = 0.0
    """Cap on money, in the unit of the prices; 0: none."""
    max_seconds: Annotated[float, Range(0, 1e12)] = 0.0
    """Cap on seconds spent waiting for the model; 0: none."""
    prompt_price: Annotated[float, Range(0, 1e9)] = 0.0
    """Price of a million tokens of questions."""
    reply_price: Annotated[float, Range(0, 1e9)] = 0.0
    """Price of a million tokens of replies."""
    at_cap: Literal["stop", "fallback", "abort"] = "stop"
    """Stop: no more answers. Fallback: ask the labeller `fallback`. Abort: end the run."""
    fallback: str = ""
    """A labeller as in ``preferences.labeller``, for ``at_cap = "fallback"``."""
    preflight: Literal["refuse", "allow", "off"] = "refuse"
    """Before training, pairs with known answers are asked. Refuse: a model that is right on fewer
    than `preflight_accuracy` is refused, with the figures. Allow: the figures are a warning."""
    preflight_accuracy: Annotated[float, Range(0, 1)] = 0.7
    """Smallest share right; a pair without an answer counts half."""
    cache: str = "runs/llm.sqlite"
    """SQLite file that keeps every question and answer; what it holds is never asked again."""
    in_doubt: Literal["abstain", "ask"] = "abstain"
    """A question under way when a run was killed may have been paid for. Abstain: never ask it
    again. Ask: do (a local server costs nothing, and a resumed run then gets every answer)."""
    offline: bool = False
    """Answer from the cache alone and never touch the network."""


@settings("preferences.model.")
class ModelConfig:
    """A reward model learned before, from a run or by `marl fit-reward`."""

    run: str = ""
    """Folder of that run or fit; its newest checkpoint is read when training starts."""
    length_control: bool = False
    """Judge by S - c * length, with c such that longer episodes are worth as much as shorter ones
    in the mean over all pairs seen: the model's bias towards long or short episodes is not
    passed on. Not for tasks where the length is what counts."""
    temperature: Annotated[float, Range(0, 1e6)] = 0.0
    """t > 0 gives soft labels sigmoid(gap / t), where 1 is the model's own probability; 0 gives
    hard ones."""


@settings("preferences.contrast.")
class ContrastConfig:
    """Two checkpoints of a weak run, whose log-ratio judges the episodes of a strong one.

    The weak team may have smaller networks and another number of agents, each of which must see and
    do as much as here.
    """

    before: str = ""
    """The earlier one: ``RUN/checkpoints/step_*.ckpt``, or a run from which that of `after`
    started."""
    after: str = ""
    """The later one; of a run's folder its newest checkpoint, read when training starts."""
    clip: Annotated[float, Range(1e-6, 1e6)] = 2.0
    """Largest log-ratio of one agent's action, in nats."""
    length_control: bool = True
    """As ``preferences.model.length_control``: log-ratios grow with an episode's length."""


@settings("preferences.teacher.")
class TeacherConfig:
    """Simulated human error around the labeller (Lee et al. 2021, arXiv 2111.03026).

    Returns are measured in standard deviations over the kept episodes, so that the same numbers
    mean the same on every task. Asked twice about a pair, the teacher says the same. The
    defaults add no error.
    """

    rationality: Annotated[float, Range(0, math.inf)] = math.inf
    """beta: the answer is turned round with probability sigmoid(-beta |G_1 - G_2| / std G), which
    is the Boltzmann choice; inf never errs, 0 guesses."""
    mistakes: Annotated[float, Range(0, 1)] = 0.0
    """Probability that an answer is turned round, however clear the pair."""
    skip_below: Annotated[float, Range(-math.inf, 1e6)] = -math.inf
    """No answer where both returns lie below mean G + this many deviations."""
    tie_within: Annotated[float, Range(0, 1e6)] = 0.0
    """Tie where the returns differ by less than this many deviations."""
    myopia: Annotated[float, Range(0, 1)] = 1.0
    """Benchmarks only: discount by which a step weighs less than the next one in the return that
    the teacher judges by, a sum of the hidden dense rewards. 1: the true return."""


@settings("preferences.people.")
class PeopleConfig:
    """People who answer on the page of ``marl label RUN``, while the run trains."""

    wait: bool = False
    """Whether training stands still while a question is open, rather than go on and use the
    answers as they come."""
    filmed_envs: Annotated[int, Range(1, 1e6)] = 8
    """Environments that are filmed; questions are about their episodes only. Fewer save time."""
    task: str = ""
    """What the team should achieve, in a sentence or two; shown on the page."""


@settings("preferences.")
class PreferenceConfig:
    """Which episodes are compared, and by whom."""

    labeller: str = "return"
    """Who prefers: ``return`` (larger episodic return wins), ``outcome`` (the fact ``won``),
    or ``facts``, ``llm`` (a language model), ``model`` (a reward learned before), ``contrast``
    (what a weaker team has learned) and ``people`` (who answer on a page), each with settings of
    that name; ``python`` (a callable given to marl.train), or an import path: ``my_labels:f`` is
    the labeller (of a class, an instance), while for ``my_labels:make()`` it is what the call
    returns."""
    deadline: Annotated[float, Range(0, 1e9)] = 600.0
    """Seconds after which a labeller of your own that has not answered stops the run, its state
    saved; 0: never."""
    margin: Annotated[float, Range(0, 1e12)] = 0.0
    """Returns closer than this are a tie."""
    sharpness: Annotated[float, Range(0, 1e6)] = 0.0
    """k > 0 gives soft labels sigmoid(k (G_1 - G_2) / std G); 0 gives hard ones."""
    discount: Annotated[float, Range(1e-6, 1)] = 1.0
    """Compare G discount^(T - 1), what a return paid in the last of T steps is worth at the first.
    Of two equal losses, such as a fall, the later one is then better. The learned scores are plain
    sums of R all the same, and the policy discounts R once more. 1: the plain return."""
    facts: tuple[str, ...] = ()
    """What ``facts`` compares, the most important first; a later one decides where the earlier
    tie. Facts of the environment, or ``return``, ``length``, ``novelty`` (of the final state).
    With ``time+`` more of it is better, with ``time-`` less is; files also take ``+time`` and the
    form ``-time``, which on the command line would read as a flag."""
    fact_margins: tuple[Annotated[float, Range(0, math.inf)], ...] = ()
    """One per entry of `facts`: closer than this is a tie. Empty: only equal ones are."""
    tie_break: tuple[str, ...] = ()
    """What decides where the labeller says tie, in the form of `facts`, e.g. while no early
    return differs from another."""
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    queries_per_iteration: Annotated[int, Range(0, 1e6)] = 0
    """Pairs asked per iteration in which an episode ended, and kept; 0: the labeller is free and
    labels every pair."""
    schedule: Literal["constant", "hyperbolic"] = "constant"
    """``hyperbolic``: `queries_per_iteration` / (1 + 10 t), where t is the share of the run
    done."""
    max_labels: Annotated[int, Range(0, 1e9)] = 0
    """Most pairs asked in the whole run, answered or not; 0: no limit."""
    query: Literal[
        "uniform", "recent_with_older", "newest_share", "stratified", "disagreement", "entropy"
    ] = "newest_share"
    """How episodes are chosen: uniformly, each recent one against an older one, `newest_share` of
    them from the newest rollout, or every range of returns alike. ``disagreement`` and ``entropy``
    ask the `newest_share` pairs on which an ensemble of reward models disagrees, or is undecided,
    most."""
    ensemble_size: Annotated[int, Range(1, 100)] = 3
    """Reward models behind ``disagreement`` and ``entropy``, the run's own among them."""
    candidates: Annotated[int, Range(1, 1e4)] = 10
    """Pairs drawn for each that ``disagreement`` or ``entropy`` asks."""
    retire_after: Annotated[int, Range(0, 1e12)] = 0
    """Environment steps after which an answer is not used any more; 0: as long as both episodes
    are kept."""
    newest_share: Annotated[float, Range(0, 1)] = 0.5
    """Share of a batch that comes from the newest finished episodes."""
    buffer_pairs: Annotated[int, Range(1, 1e8)] = 10_000
    """Answered pairs that are kept."""
    holdout_every: Annotated[int, Range(2, 1e6)] = 8
    """Every so many-th episode is held out and only measures preference accuracy."""
    replay_steps: Annotated[int, Range(1, 1e10)] = 256_000
    """Steps of experience that are kept, if they are of no more than `replay_episodes`."""
    replay_episodes: Annotated[int, Range(2, 1e8)] = 2_048
    """Finished episodes that are kept: the newest, of which a reward is learned. Where episodes
    are short, that is less than `replay_steps`."""
    llm: LlmConfig = field(default_factory=LlmConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    contrast: ContrastConfig = field(default_factory=ContrastConfig)
    people: PeopleConfig = field(default_factory=PeopleConfig)

    @property
    def labellers(self) -> tuple[str, ...]:
        """The labeller and, where it may take over at a cap, the language model's fallback."""
        has_fallback = self.labeller == "llm" and self.llm.at_cap == "fallback"
        return (self.labeller, self.llm.fallback) if has_fallback else (self.labeller,)
