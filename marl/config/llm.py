"""Settings of the language-model labeller, the section ``[preferences.llm]``."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator

from marl.config.validation import ConfigError, Range, settings

AskForm = Literal["pointwise", "pairwise"]


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
