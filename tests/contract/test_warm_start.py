"""A new run starts from what another has learned, says what it took, and refuses what does not fit.

All runs are of a few iterations on three particles.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import marl
from marl.config import ConfigError
from marl.trainer import Trainer
from marl.utils.checkpoint import (
    CheckpointError,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
)
from marl.warm_start import HELD_STEPS
from tests.command_line import QUICK, run

SETTINGS: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_3",
    "env.num_envs": 4,
    "learner.rollout_steps": 25,
    "preferences.replay_steps": 1000,
    "total_steps": 300,
    "seed": 1,
}
ONE_A_TURN = {"preferences.queries_per_iteration": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of algorithm imap, with a checkpoint after each of its three iterations."""
    folder = tmp_path_factory.mktemp("init") / "run"
    flags = ["--algorithm=imap", *QUICK, "--checkpoint-every=100"]
    assert run("train", *flags, "--run-dir", folder) == 0
    return folder


def started(**settings: Any) -> Trainer:
    return Trainer(marl.load_config(overrides=SETTINGS | settings))


def state_of(source: Path) -> dict[str, Any]:
    state: dict[str, Any] = load_checkpoint(source / "checkpoints")[1]["trainer"]
    return state


def assert_equal(mine: Any, theirs: Any) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name


def test_a_run_acts_and_values_as_its_source(source: Path) -> None:
    trainer, theirs = started(init=str(source)), state_of(source)
    assert_equal(trainer.learner.actor.state_dict(), theirs["learner"]["actor"])
    for name, critic in theirs["learner"]["critics"].items():
        assert_equal(trainer.learner.critics[name].state_dict(), critic)  # type: ignore[attr-defined]  # Mappo's
    assert float(trainer.norm.obs_norm.count[0]) == 300.0
    assert float(trainer.norm.state_norm.count) == 300.0
    assert trainer.init_notes == [
        f"starting from {source}: particles/nav_3, algorithm imap, 300 steps",
        "actor and statistics of observations: taken",
        "team critic: taken",
        "local critic: taken",
        "reward model: not asked for (init_reward); it starts from random weights",
    ]
    assert trainer.reward is not None
    assert not trainer.reward.is_fitted


def test_the_reward_model_is_taken_if_asked_for_and_paid_at_once(source: Path) -> None:
    settings = {"init_reward": True, "preferences.margin": 1e9}  # all ties: nothing is learned anew
    trainer, theirs = started(init=str(source), **settings), state_of(source)
    assert trainer.reward is not None
    assert_equal(trainer.reward.model.state_dict(), theirs["reward"]["model"])
    assert_equal(trainer.reward.team_scale.state_dict(), theirs["reward"]["team_scale"])
    assert trainer.init_notes[-1] == "reward model: taken"
    assert "reward/std" in trainer.iterate()
    assert "reward/std" not in started(**{"preferences.margin": 1e9}).iterate()
    again = started(**settings, init=str(source))
    again.load_state_dict(trainer.state_dict())
    assert "reward/std" in again.iterate()


def test_a_policy_of_few_demonstrations_acts_the_same_after_other_observations(
    source: Path, tmp_path: Path
) -> None:
    assert run("sample", source, tmp_path / "demos", "--episodes=2", "--num-envs=1") == 0
    start = tmp_path / "start"
    assert run("imitate", tmp_path / "demos", "--steps=2", "--out", start) == 0
    still = {"learner.learning_rate": 1e-12, "algorithm": "sparse", "total_steps": 1000}
    trainer = started(init=str(start), **still)
    assert float(trainer.norm.obs_norm.count[0]) == HELD_STEPS  # of 50 there
    obs = torch.randn(64, 3, trainer.env.spec.obs_size, generator=torch.Generator().manual_seed(0))
    before = trainer.learner.actor.step_distribution(obs)[0].logits.detach()
    for _ in range(10):
        trainer.iterate()
    after = trainer.learner.actor.step_distribution(obs)[0].logits.detach()
    moved = (after - before).abs().max() / before.abs().max()
    assert 0.0 < float(moved) < 0.05  # 0.9 where the statistics are replaced


def test_episodes_and_answers_are_taken_if_asked_for(source: Path, tmp_path: Path) -> None:
    answers = {"preferences.queries_per_iteration": 8, "init": "", "checkpoint_every": 100}
    first = tmp_path / "first"
    for _ in marl.train(marl.load_config(overrides=SETTINGS | answers), run_dir=first):
        pass
    theirs = state_of(first)["feedback"]
    settings = {"init": str(first), "init_buffer": True, "preferences.queries_per_iteration": 8}
    trainer = started(**settings)
    feedback = trainer.feedback
    assert feedback is not None
    replay = feedback.replay
    kept = torch.cat((replay.available(), replay.available(held_out=True)))
    assert len(kept) == 12  # 300 steps in episodes of 25
    mine, saved = replay.episodes(kept), theirs["replay"]["episodes"]["returns"]
    assert sorted(mine.returns.tolist()) == sorted(saved.tolist())
    standing = feedback.buffer.standing()
    assert len(feedback.buffer) == len(standing[2]) == len(theirs["buffer"]["labels"]) > 0
    gaps = replay.episodes(standing[0]).returns - replay.episodes(standing[1]).returns
    assert torch.equal(standing[2] > 0.5, gaps > 0.0)  # each answer is about its own episodes still
    assert feedback.tally.asked == 0  # by this run
    count = len(standing[2])
    assert trainer.init_notes[-1] == f"episodes: 12 taken, with {count} answers about them"
    free = started(init=str(first), init_buffer=True)
    assert free.init_notes[-1] == "episodes: 12 taken, which this run's labeller judges"
    batch = feedback.batch()
    assert batch is not None
    assert len(batch.labels) > 0
    metrics = trainer.iterate()
    assert metrics["preference/episodes"] == replay.num_finished
    assert metrics["preference/kept_answers"] == count + metrics["preference/answered"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env.num_envs": 2}, "do not fit this run's replay buffer; set env.num_envs = 4 as there"),
        ({"algorithm": "sparse"}, "nothing is learned from episodes kept"),
        ({"init": ""}, "init names no run whose episodes to start with"),
        ({"preferences.labeller": "people", **ONE_A_TURN}, "are shown films"),
    ],
)
def test_episodes_that_do_not_fit_are_one_line(
    settings: dict[str, Any], words: str, source: Path
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        started(**{"init": str(source), "init_buffer": True} | settings)
    assert "\n" not in str(caught.value)


def test_a_run_that_kept_no_episodes_has_none_to_give(source: Path, tmp_path: Path) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    del state["trainer"]["feedback"]["replay"]
    save_checkpoint(tmp_path / "bare" / "checkpoints", step, state)
    with pytest.raises(ConfigError, match="has kept no episodes; leave init_buffer out"):
        started(init=f"{tmp_path}/bare", init_buffer=True)


def test_episodes_of_another_length_are_not_taken(source: Path, tmp_path: Path) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    state["spec"]["max_steps"] = 20
    save_checkpoint(tmp_path / "short" / "checkpoints", step, state)
    with pytest.raises(ConfigError, match=r"\(max_steps: 20\), this run is on .*max_steps: 25\)"):
        started(init=f"{tmp_path}/short", init_buffer=True)


def test_what_does_not_fit_is_left_and_told(source: Path) -> None:
    trainer = started(init=str(source), algorithm="sparse", **{"learner.kind": "ippo"})
    assert_equal(trainer.learner.actor.state_dict(), state_of(source)["learner"]["actor"])
    assert trainer.init_notes[1:] == [
        "actor and statistics of observations: taken",
        "team critic: not taken, of other sizes there",
    ]


def test_a_run_without_a_reward_has_none_to_give(source: Path, tmp_path: Path) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    state["config"]["algorithm"] = "sparse"
    del state["trainer"]["learner"]["critics"]["local"]
    save_checkpoint(tmp_path / "sparse" / "checkpoints", step, state)
    assert "local critic: not taken, there is none" in started(init=f"{tmp_path}/sparse").init_notes
    with pytest.raises(ConfigError, match="has learned no reward model; leave init_reward out"):
        started(init=f"{tmp_path}/sparse", init_reward=True)
    state["config"]["algorithm"] = "imap"
    state["trainer"]["feedback"]["is_informative"] = False  # all answers were ties
    save_checkpoint(tmp_path / "ties" / "checkpoints", step, state)
    with pytest.raises(ConfigError, match="has learned no reward model; leave init_reward out"):
        started(init=f"{tmp_path}/ties", init_reward=True)


def test_a_checkpoint_can_be_named_and_a_policy_loaded_from_it(source: Path) -> None:
    first = list_checkpoints(source / "checkpoints")[-1]
    assert first.name == "step_000000000100.ckpt"
    trainer = started(init=str(first))
    assert float(trainer.norm.obs_norm.count[0]) == 100.0
    early, late = marl.load(first), marl.load(source)
    assert (early.steps, late.steps) == (100, 300)
    assert early.folder == late.folder == source
    obs = np.random.default_rng(0).normal(size=(50, 3, early.spec.obs_size))
    assert (early.act(obs, greedy=True) != late.act(obs, greedy=True)).any()
    assert_equal(trainer.learner.actor.state_dict(), early.actor.state_dict())


def test_a_fitted_reward_model_can_be_started_with(source: Path, tmp_path: Path) -> None:
    assert run("export", source, tmp_path / "pairs", "--pairs=40") == 0
    fit = tmp_path / "fit"
    assert run("fit-reward", tmp_path / "pairs", "--model=imap", "--steps=2", "--out", fit) == 0
    theirs = load_checkpoint(fit / "checkpoints")[1]["reward"]
    trainer = started(init=str(fit), init_reward=True)
    assert trainer.reward is not None
    assert_equal(trainer.reward.model.state_dict(), theirs["model"])
    assert torch.equal(trainer.norm.obs_norm.mean, theirs["model"]["norm.obs_norm.mean"])
    with pytest.raises(ConfigError, match="holds a fitted reward model and no policy"):
        started(init=str(fit))


def test_a_resumed_run_needs_its_source_no_more(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(source, tmp_path / "source")
    flags = ["--init", tmp_path / "source", "--init-reward", "--seed=2", "--total-steps=200"]
    assert run("train", "--algorithm=imap", *QUICK, *flags, "--run-dir", tmp_path / "run") == 0
    told = capsys.readouterr().out
    assert "\nteam critic: taken\n" in told
    assert "\nreward model: taken\n" in told
    shutil.rmtree(tmp_path / "source")
    assert run("resume", tmp_path / "run") == 0
    assert "taken" not in capsys.readouterr().out
    assert f'init = "{tmp_path / "source"}"' in (tmp_path / "run" / "config.toml").read_text()


def test_python_names_the_source_too(source: Path, tmp_path: Path) -> None:
    told: list[str] = []
    config = marl.load_config(overrides=SETTINGS | {"total_steps": 100})
    list(marl.train(config, tmp_path / "run", init=source, tell=told.append))
    assert told[1] == "actor and statistics of observations: taken"
    rows = list(marl.train(config, init=source, tell=told.append))
    assert len(rows) == 1
    assert told[: len(told) // 2] == told[len(told) // 2 :]
    assert marl.load(tmp_path / "run").config.init == str(source)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env.name": "particles/nav_6"}, r"on particles/nav_3 \(agents: 3.*on .*nav_6 \(agents"),
        ({"env.name": "probe/continuous_match"}, r"kind of action: discrete.*continuous"),
        (
            {"network.hidden_sizes": (8,), "network.recurrence": "gru"},
            r"set network.hidden_sizes = \[64, 64\], network.recurrence = none as there",
        ),
        ({"network.normalise_inputs": False}, r"set network.normalise_inputs = True as there"),
        ({"init_reward": True, "algorithm": "slf"}, r"factored \(gamma_R 0.9\).*does not fit"),
        ({"init_reward": True, "algorithm": "sl"}, r"does not fit this run's central"),
        ({"init_reward": True, "algorithm": "sparse"}, "no reward model is fitted; leave it out"),
        ({"init_reward": True, "algorithm": "ircr"}, "no reward model is fitted; leave it out"),
        ({"init_reward": True, "init": ""}, "init names no run or fit"),
    ],
)
def test_what_must_fit_is_one_line(settings: dict[str, Any], words: str, source: Path) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        started(**{"init": str(source)} | settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        ("actor", {}, "has other tensors than its settings speak of"),
        ("actor", 7, "does not fit its settings"),
        ("critics", 7, "does not fit its settings"),
    ],
)
def test_a_damaged_source_is_one_line(
    part: str, value: Any, words: str, source: Path, tmp_path: Path
) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    state["trainer"]["learner"][part] = value
    save_checkpoint(tmp_path / "bad" / "checkpoints", step, state)
    with pytest.raises(CheckpointError, match=words):
        started(init=str(tmp_path / "bad"))


def test_weights_that_are_no_numbers_are_refused(source: Path, tmp_path: Path) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    for tensor in state["trainer"]["learner"]["actor"].values():
        tensor.fill_(torch.nan)
    save_checkpoint(tmp_path / "bad" / "checkpoints", step, state)
    with pytest.raises(CheckpointError, match="not finite"):
        started(init=str(tmp_path / "bad"))


def test_code_that_a_source_names_is_not_imported(source: Path, tmp_path: Path) -> None:
    step, state = load_checkpoint(source / "checkpoints")
    state["config"]["env"]["name"] = "no_such_module:Env"
    state["config"]["preferences"]["labeller"] = "no_such_module:labeller"
    save_checkpoint(tmp_path / "foreign" / "checkpoints", step, state)
    assert started(init=str(tmp_path / "foreign")).init_notes[1].endswith("taken")
