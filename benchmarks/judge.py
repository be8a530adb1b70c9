"""A judge of known skill behind the real protocol, where no large language model can be had.

    python -m benchmarks.judge &
    marl sweep benchmarks/studies/label_cost.toml --keep benchmarks/results/label_cost --trust

It is asked over HTTP, in both orders, and answers with log-probabilities: everything between a
run and a model is as it is with a model. How often it is right is part of the model's name:
``judge-80`` prefers the episode of the larger return in 80 % of the pairs. The log-odds of its
answer are k v + b, where v > 0 if it is right about the pair, and b favours what is shown first.
With ``judge-70-first`` b is so large that the answer is always "A", as that of small models can
be; the mean over both orders, without b, is right in 70 % of the pairs.

v = |z| + s e of a pair has normal numbers z and e, both drawn from a hash of the pair's texts:
asked again, the judge says the same. s = 1 / tan(pi (accuracy - 1/2)) makes P(v > 0) the
accuracy, and k = 1.7 / (s sqrt(1 + s^2)) makes the log-odds mean what they say, up to the normal
distribution being told by a logistic one. In the half of the pairs that it is surest of,
``judge-70-first`` is right in 81 % and ``judge-80`` in 93 %.
"""

import argparse
import hashlib
import math
import re
import statistics
import threading
from typing import Any

from marl.preferences.labellers import Episodes
from tests.llm_server import ModelServer

PORT = 8931
MODELS = ("judge-70-first", "judge-80")
FIRST = 12.0
"""b of a model that always names the first episode: more than any k v."""
_NORMAL = statistics.NormalDist()


def told_return(episodes: Episodes) -> list[str]:
    """Return the description that the judge reads, a text for each episode: its return."""
    return [f"return: {value:.6f}" for value in episodes.returns.tolist()]


def opinion(model: str, better: str, worse: str) -> float:
    """Return k v of a model about two texts, of which the first tells of the better episode."""
    accuracy = int(model.split("-")[1]) / 100
    spread = 1.0 / math.tan(math.pi * (accuracy - 0.5))
    digest = hashlib.sha256(f"{model}\n{better}\n{worse}".encode()).digest()
    size, error = (
        _NORMAL.inv_cdf((int.from_bytes(part) + 0.5) / 2**64) for part in (digest[:8], digest[8:16])
    )
    sharpness = 1.7 / (spread * math.sqrt(1.0 + spread**2))
    return sharpness * (abs(size) + spread * error)


class JudgeServer(ModelServer):
    """The server: answers pairs that `told_return` has described."""

    def __init__(self, port: int = 0) -> None:
        super().__init__(port=port, remembers=False)
        self.models = list(MODELS)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a whole completion, of the model that was asked for."""
        return super().answer(body) | {"model": body["model"]}

    def odds(self, body: dict[str, Any]) -> float:
        """Return the log-odds that the answer is the first choice."""
        model, question = body["model"], body["messages"][-1]["content"]
        told = re.findall(r"return: -?[\d.]+", question)
        if len(told) != 2 or told[0] == told[1]:
            return super().odds(body)  # a tie, or a pair of the preflight, which tells no returns
        returns = [float(text.removeprefix("return: ")) for text in told]
        is_first = returns[0] > returns[1]
        view = opinion(model, *told) if is_first else -opinion(model, *reversed(told))
        return view + (FIRST if model.endswith("-first") else 0.0)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=int, default=PORT)
    options = parser.parse_args()
    with JudgeServer(options.port) as server:
        print(f"{', '.join(MODELS)} answer at {server.base_url}; Ctrl-C ends it", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")


if __name__ == "__main__":
    main()
