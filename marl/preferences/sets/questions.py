"""The pairs of a set that a run would like to have answered: ``questions.json``.

Written whole by training at every change, read by the page. A set without this file has no
questions of its own: any pair of it may be shown.
"""

import json
from pathlib import Path

from marl.disk import write_whole

Pair = tuple[int, int]
"""Numbers of two episodes, in the order in which they are to be shown."""


class QuestionsError(ValueError):
    """A set's questions cannot be read."""


def write_questions(folder: Path, pairs: list[Pair]) -> None:
    """Write the open questions, the most urgent first."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"open": [list(pair) for pair in pairs]})
    write_whole(folder / "questions.json", text.encode())


def read_questions(folder: Path) -> list[Pair] | None:
    """Return the open questions, the most urgent first; None: the set has none of its own."""
    path = folder / "questions.json"
    try:
        content = json.loads(path.read_bytes())
        return [(int(first), int(second)) for first, second in content["open"]]
    except FileNotFoundError:
        return None
    except (LookupError, TypeError, ValueError) as error:
        raise QuestionsError(
            f"{path} is damaged ({error}); delete it, and training writes it anew at its next "
            "question"
        ) from error
