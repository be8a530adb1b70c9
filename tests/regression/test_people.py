"""People as labeller: what a run asks, when it uses the answers, and that it resumes exactly."""

import itertools
import shutil
import threading
import time
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.trials import differences
from envs import EnvError
from marl import ConfigError, Trainer, train
from marl.config import Config
from marl.preferences.dataset import DatasetError, PreferenceDataset
from marl.preferences.dataset.answers import read_questions
from marl.preferences.dataset.footage import read_frames
from marl.preferences.dataset.format import read_episode, read_manifest
from marl.preferences.people import Camera
from marl.preferences.people.camera import AGAIN, RunDataset
from marl.preferences.people.session import Choice, Labelling, LabellingPlan
from marl.utils.checkpoint import list_checkpoints, load_checkpoint
from marl.utils.metrics import read_metrics
from tests.small_runs import small

PEOPLE = {
    "preferences.holdout_every": 3,
    "preferences.labeller": "people",
    "preferences.queries_per_iteration": 2,
    "preferences.people.filmed_envs": 3,
}

Run = Generator[dict[str, float], None, None]


def asking(**changes: object) -> Config:
    """Return the settings of a small run that asks people."""
    return small(**PEOPLE | changes)


class Person:
    """Answers a run's open questions by the returns, which only the dataset's episodes tell."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "people"
        self.labelling = Labelling(self.folder, "ann", LabellingPlan(asked_by_run=True))

    def answer(self, most: int = 1000) -> int:
        """Return how many questions were answered, `most` of them at most."""
        for count in range(most):
            question = self.labelling.question()
            if question is None:
                return count
            first, second = map(self.value, question.pair)
            choice: Choice = "first" if first > second else "second"
            self.labelling.answer(question.id, choice, 1.0)
        return most

    def value(self, number: int) -> float:
        spec = read_manifest(self.folder).spec
        return read_episode(self.folder, number, spec).episode_return


def advance(run: Run, iterations: int) -> dict[str, float]:
    """Return the metrics of the last of so many iterations."""
    return list(itertools.islice(run, iterations))[-1]


def test_what_a_run_asks_can_be_shown_and_is_a_preference_dataset(tmp_path: Path) -> None:
    run = train(asking(), tmp_path / "run")
    metrics = advance(run, 6)
    folder = tmp_path / "run" / "people"
    asked = read_questions(folder)
    assert asked is not None
    assert len(asked) == metrics["labeller/open"] > 0
    # A question counts once it is closed.
    assert metrics["preference/asked"] == metrics["preference/answered"] == 0
    made = PreferenceDataset(folder)
    assert made.manifest.environment.name == "particles/nav_3"
    assert made.manifest.origin["run"] == str(tmp_path / "run")
    for number in set(itertools.chain(*asked)):
        record, film = made.episode(number), read_frames(folder, number)
        assert film.steps == tuple(range(record.length))
        # A particle sees its velocity, then its own place: the film is of this very episode.
        np.testing.assert_allclose(film.frames[-1].anchors, record.obs[-1, :, 2:4], atol=1e-5)


def test_the_newest_question_comes_first(tmp_path: Path) -> None:
    run = train(asking(), tmp_path / "run")
    advance(run, 3)
    before = read_questions(tmp_path / "run" / "people")
    advance(run, 3)
    after = read_questions(tmp_path / "run" / "people")
    assert before is not None
    assert after is not None
    assert after[-len(before) :] == before


def test_answers_are_used_when_they_come_and_the_policy_then_learns(tmp_path: Path) -> None:
    run = train(asking(), tmp_path / "run")
    metrics = advance(run, 6)
    assert not np.isfinite(metrics.get("preference/loss", np.nan))
    answered = Person(tmp_path / "run").answer()
    metrics = advance(run, 1)
    assert metrics["preference/answered"] == answered > 0
    assert metrics["preference/asked"] >= answered
    assert np.isfinite(metrics["preference/loss"])


def test_answers_mean_what_they_say(tmp_path: Path) -> None:
    trainer = Trainer(asking(), tmp_path)
    for _ in range(6):
        trainer.iterate()
    answered = Person(tmp_path).answer()
    trainer.iterate()
    assert trainer.feedback is not None
    buffer, replay = trainer.feedback.buffer, trainer.feedback.replay
    size = len(buffer)
    assert size >= answered
    for first, second, label in zip(
        buffer.first[:size], buffer.second[:size], buffer.labels[:size], strict=True
    ):
        returns = replay.episodes(first.new_tensor([int(first), int(second)])).returns
        assert float(label) == float(returns[0] > returns[1])


def test_a_changed_or_withdrawn_answer_is_put_right(tmp_path: Path) -> None:
    trainer = Trainer(asking(**{"preferences.max_labels": 4}), tmp_path)
    for _ in range(4):
        trainer.iterate()
    person = Person(tmp_path)
    assert person.answer(1) == 1
    trainer.iterate()
    assert trainer.feedback is not None
    buffer = trainer.feedback.buffer
    assert len(buffer) == 1
    label = float(buffer.labels[0])
    question = person.labelling.question()
    person.labelling.undo(None if question is None else question.id)
    trainer.iterate()
    assert bool(buffer.labels[0].isnan())
    again = person.labelling.question()
    assert again is not None
    person.labelling.answer(again.id, "second" if label == 1.0 else "first", None)
    trainer.iterate()
    assert float(buffer.labels[len(buffer) - 1]) == 1.0 - label
    assert int((~buffer.labels[: len(buffer)].isnan()).sum()) == 1


def test_skipped_pairs_are_closed_without_an_answer(tmp_path: Path) -> None:
    run = train(asking(), tmp_path / "run")
    metrics = advance(run, 4)
    labelling = Labelling(tmp_path / "run" / "people", "ann", LabellingPlan(asked_by_run=True))
    count = 0
    while (question := labelling.question()) is not None:
        labelling.answer(question.id, "skip", None)
        count += 1
    assert count == metrics["labeller/open"] > 0
    metrics = advance(run, 1)
    assert metrics["preference/asked"] == count
    assert metrics["preference/answered"] == 0


def test_questions_about_forgotten_episodes_expire(tmp_path: Path) -> None:
    run = train(asking(**{"preferences.replay_steps": 320}), tmp_path / "run")
    with pytest.warns(UserWarning, match="answered none of"):
        metrics = list(run)[-1]
    assert metrics["labeller/expired"] > 0
    asked = read_questions(tmp_path / "run" / "people")
    assert asked is not None
    assert len(asked) == metrics["labeller/open"] < 10  # the ring holds 80 steps of each copy


def test_only_filmed_envs_are_asked_about(tmp_path: Path) -> None:
    trainer = Trainer(asking(**{"preferences.people.filmed_envs": 2}), tmp_path)
    for _ in range(8):
        trainer.iterate()
    assert trainer.feedback is not None
    assert trainer.people is not None
    replay = trainer.feedback.replay
    everything = replay.episodes(replay.available())
    copies, _ = replay.origins(everything.numbers)
    np.testing.assert_array_equal(trainer.people.can_judge(everything), copies < 2)


def test_filming_changes_no_number() -> None:
    config = asking(**{"preferences.labeller": "return", "preferences.queries_per_iteration": 0})
    plain, filmed = Trainer(config), Trainer(config)
    filmed.collector.callback = Camera(filmed.env, 3)
    for _ in range(5):
        one, other = plain.iterate(), filmed.iterate()
        for name in one:
            if not name.startswith(("time/", "memory/")):
                np.testing.assert_equal(other[name], one[name])


def test_what_was_filmed_of_a_rollout_that_failed_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, failing = (Trainer(asking(), tmp_path / name) for name in ("plain", "failing"))
    for trainer in (plain, failing):
        for _ in range(2):
            trainer.iterate()
    step, calls = failing.env.step, itertools.count()

    def fails(actions: Any) -> Any:
        if next(calls) == 15:
            raise EnvError("no more")
        return step(actions)

    monkeypatch.setattr(failing.env, "step", fails)
    with pytest.raises(EnvError):
        failing.iterate()
    assert filmed(plain) == filmed(failing)
    for trainer in (plain, failing):
        trainer.iterate()
    assert filmed(plain) == filmed(failing)


def filmed(trainer: Trainer) -> dict[str, Any]:
    """Return all that a run's camera holds, the films as bytes."""
    assert trainer.people is not None
    state = trainer.people.camera.state_dict()
    return state | {"films": [(*at, film.tobytes()) for *at, film in state["films"]]}


@pytest.mark.parametrize("stops", [(1, 4), (5, 3), (7, 1, 2)])
def test_it_resumes_exactly_given_the_same_answers_at_the_same_times(
    tmp_path: Path, stops: tuple[int, ...]
) -> None:
    config = asking()
    for name, parts in (("whole", ()), ("parts", stops)):
        folder = tmp_path / name
        iteration, run = 0, train(config, folder)
        person = Person(folder)
        ends = set(itertools.accumulate(parts))
        while iteration < config.num_iterations:
            next(run)
            iteration += 1
            if iteration % 2:
                person.answer(1 + iteration % 3)
            if iteration in ends:
                run.close()
                run = train(config, folder, resume=True)
        assert list(run) == []
    assert read_metrics(tmp_path / "whole")["preference/kept_answers"][-1] > 5
    assert differences(tmp_path / "whole", tmp_path / "parts") == []
    one, other = (asked_in(tmp_path / name) for name in ("whole", "parts"))
    assert str(one) == str(other) != "[]"


def asked_in(run: Path) -> list[Any]:
    """Return the questions that a run's newest checkpoint remembers."""
    trainer = load_checkpoint(run / "checkpoints")[1]["trainer"]
    asked: list[Any] = trainer["feedback"]["labeller"][0]["asked"]
    return asked


def test_an_answer_to_what_a_killed_run_asked_last_is_not_lost(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run = train(asking(), folder)
    advance(run, 4)
    person = Person(folder)
    answered = person.answer()  # all that was asked in four iterations
    run.close()
    newest, *_ = list_checkpoints(folder / "checkpoints")
    newest.unlink()  # as if the run had been killed: the third iteration's is the newest
    assert 0 < len(asked_in(folder)) < answered
    metrics = advance(train(asking(), folder, resume=True), 1)
    assert metrics["preference/answered"] == answered
    assert max(PreferenceDataset(folder / "people").numbers()) < AGAIN


def test_another_episode_of_the_same_number_gets_a_number_of_its_own(tmp_path: Path) -> None:
    advance(train(asking(), tmp_path / "run"), 5)
    made = PreferenceDataset(tmp_path / "run" / "people")
    number = made.numbers()[0]
    record = made.episode(number)
    kept = RunDataset(made.folder, made.manifest)
    assert kept.add(number, record, b"the same") == number
    changed = replace(record, obs=record.obs + 1.0)
    assert kept.add(number, changed, b"another") == number + AGAIN
    assert kept.add(number, changed, b"another") == number + AGAIN
    np.testing.assert_array_equal(made.episode(number).obs, record.obs)


def test_training_waits_for_people_and_goes_on(tmp_path: Path) -> None:
    config = asking(**{"preferences.people.wait": True, "total_steps": 480})
    folder = tmp_path / "run"
    done = threading.Event()

    def label() -> None:
        person = Person(folder)
        while not done.wait(0.05):
            person.answer()

    helper = threading.Thread(target=label)
    helper.start()
    try:
        metrics = list(train(config, folder))
    finally:
        done.set()
        helper.join()
    assert len(metrics) == config.num_iterations
    # What one iteration asks is answered before the next begins.
    asked = [m["labeller/open"] for m in metrics]
    answered = [m["preference/answered"] for m in metrics]
    assert sum(asked) > 0
    np.testing.assert_array_equal(answered[1:], asked[:-1])


def test_a_waiting_run_can_be_stopped_and_continued(tmp_path: Path) -> None:
    config, folder = asking(**{"preferences.people.wait": True}), tmp_path / "run"
    asked_to_stop: list[float] = []

    def stop() -> bool:
        asked_to_stop.append(time.monotonic())
        return len(asked_to_stop) > 2

    done = list(train(config, folder, stop=stop))
    assert 0 < len(done) < config.num_iterations
    assert done[-1]["labeller/open"] > 0
    Person(folder).answer()
    resumed = train(config, folder, resume=True)
    assert next(resumed)["steps"] == done[-1]["steps"] + config.batch_steps
    resumed.close()


def test_people_need_a_run_folder() -> None:
    with pytest.raises(ConfigError, match=r"people.*run_dir"):
        Trainer(asking())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences.queries_per_iteration": 0}, "say how many pairs an iteration"),
        ({"preferences.teacher.mistakes": 0.1}, "people err and tie by themselves"),
        ({"preferences.tie_break": ["return"]}, "people err and tie by themselves"),
        ({"preferences.people.filmed_envs": 0}, "expected a number from 1"),
        (
            {
                "preferences.labeller": "llm",
                "preferences.llm.at_cap": "fallback",
                "preferences.llm.fallback": "people",
            },
            "preferences.llm.fallback",
        ),
    ],
)
def test_settings_that_people_cannot_be_asked_with(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        asking(**changes)


def test_a_damaged_answer_stops_the_run_with_its_place(tmp_path: Path) -> None:
    run = train(asking(), tmp_path / "run")
    advance(run, 4)
    Person(tmp_path / "run").answer(1)
    log = tmp_path / "run" / "people" / "answers.jsonl"
    log.write_text("damaged\n" + log.read_text())
    with pytest.raises(DatasetError, match=r"answers\.jsonl, line 1 of 2"):
        advance(run, 1)
    shutil.rmtree(tmp_path / "run" / "crash")
