"""Killed with SIGKILL at random moments while labelling: no answer is lost, none asked twice."""

import json
import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

from tests.llm_cases import kept_replies, label_opposites
from tests.llm_server import ModelServer

KILLS = 20
PAIRS = 600
SETTINGS = {"concurrency": 4, "timeout": 30.0, "deadline": 60.0}


def test_killed_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(0)
    # Children are forked from a process without threads that has imported everything.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.llm_cases"])
    with ModelServer(delay=0.01) as server:
        for _ in range(KILLS):
            started = len(server.asked)
            work = (server.base_url, tmp_path, PAIRS)
            child = context.Process(target=label_opposites, args=work, kwargs=SETTINGS)
            child.start()
            while len(server.asked) == started and child.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0.0, 0.08))
            assert child.is_alive(), "it ended before it was killed; raise PAIRS"
            before = kept_replies(tmp_path)
            child.kill()
            child.join()
            assert before.items() <= kept_replies(tmp_path).items()
        labels = label_opposites(server.base_url, tmp_path, PAIRS, **SETTINGS)
        asked = Counter(json.dumps(body, sort_keys=True) for body in server.asked)
    answers = kept_replies(tmp_path)
    probes = {body for body in asked if "- return: " not in body}
    assert len(probes) <= 1 + KILLS
    assert max(asked[body] for body in asked.keys() - probes) == 1
    # What was on its way at a kill has no answer, and is in doubt: it is not paid for twice.
    in_doubt = 2 * PAIRS - len(answers.keys() - probes)
    assert in_doubt <= KILLS * SETTINGS["concurrency"]
    assert sum(label == label for label in labels) >= PAIRS - in_doubt
    # The server answered nothing else in full that is not kept.
    assert len(server.answered.keys() - answers.keys()) <= in_doubt
    print(f"{KILLS} kills, {len(asked)} questions, {in_doubt} in doubt")
