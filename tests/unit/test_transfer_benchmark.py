"""The study of transfer: what is asked in which order, its tables, and a trial of each question."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import transfer
from benchmarks.transfer_cells import CALIBRATIONS, QUESTIONS, Cell
from benchmarks.transfer_segments import Worth, cut, cut_episode
from marl.config.io import load_config
from marl.policy import Policy
from marl.preferences.dataset import PreferenceDataset
from marl.preferences.dataset.sampling import sample_episodes
from marl.trainer import Trainer

TASKS = transfer.load(transfer.TASKS_FILE)


def test_the_cheap_questions_come_first_and_every_variant_before_another_seed() -> None:
    cells = transfer.ordered(list(TASKS.values()))
    first = TASKS["offline_nav_6"]
    assert [str(cell) for cell in cells[: len(first.variants)]] == [
        f"offline_nav_6/{variant}/seed_200" for variant in first.variants
    ]
    names = list(TASKS)
    last_cheap = max(names.index(name) for name in names if "nav_" in name)
    assert all("3m" not in name and "halfcheetah" not in name for name in names[: last_cheap + 1])
    assert {task.question for task in TASKS.values()} == QUESTIONS.keys()


@pytest.mark.parametrize("name", TASKS)
def test_settings_are_known_and_controls_are_there(name: str) -> None:
    task = TASKS[name]
    assert len(task.seeds) >= 5
    load_config(task.config, dict(task.overrides))
    if task.strong:
        load_config(task.strong, dict(task.second_overrides))
    controls = {
        "offline": {"behaviour", "bc_1000", "ppo_1000"},
        "calibration": {"none", "regression"},
        "contrast": {"contrast"},  # sharpening and greedy stand in every curve
        "weak_to_strong": {"weak", "bc_weak", "scratch"},
        "warm_start": {"none", "nll_50"},
        "reward_transfer": {"imap", "slf", "labels"},
        "segments": {"imap_5", "slf_5", "imap_25", "slf_25"},
    }
    assert controls[task.question] <= set(task.variants)
    for overrides in CALIBRATIONS.values():
        load_config(task.config, overrides)


def cell_of(task: str, variant: str, seed: int, sampled: float, **more: Any) -> dict[str, Any]:
    return {
        "task": task,
        "algorithm": variant,
        "seed": seed,
        "steps": 150_000,
        "commit": "abc",
        "seconds": 1.0,
        "greedy": -8.0,
        "sampled": sampled,
    } | more


def test_tables_show_every_seed(tmp_path: Path) -> None:
    cells = [
        cell_of("calibration_nav_6_m0", "none", 200, -10.0, final=-9.0),
        cell_of("calibration_nav_6_m0", "none", 201, -12.0, final=-9.0),
        cell_of("calibration_nav_6_m0", "return", 200, -11.0),
    ]
    points = [
        {"strength": 0.0, "sampled": [-9.0, 2.0], "greedy": [-8.0, 3.0], "sharpened": [-9.0, 2.0]},
        {"strength": 1.0, "sampled": [-7.0, 4.0], "greedy": [-6.0, 5.0], "sharpened": None},
    ]
    for seed in (200, 201):
        shifted = [one | {"sampled": [one["sampled"][0] - 2 * (seed - 200), 1]} for one in points]
        more = {"points": shifted, "before": [-20.0, 0.5]}
        cells.append(cell_of("contrast_nav_6", "contrast", seed, -9.0, **more))
    for cell in cells:
        made = Cell(TASKS[cell["task"]], cell["algorithm"], cell["seed"])
        transfer.write_cell(made, cell, tmp_path / "cells")
    assert transfer.main(["--report", "--results", str(tmp_path)]) == 0
    rows = (tmp_path / "transfer.csv").read_text().splitlines()
    assert rows[0] == ",".join(transfer.COLUMNS)
    assert rows[1] == "calibration_nav_6_m0,none,200,150000,-8.0,-10.0,-9.0,1.0,abc"
    text = (tmp_path / "transfer.md").read_text()
    assert "| none | 2 | -11 | -8 | 200: -10, 201: -12 |" in text
    assert "| return | 1 | -11 | -8 | 200: -11 |" in text
    # The team itself: -9 and -11, arrived 1; sharpened is only known at strength 0, where it is it.
    assert "| the base |  | sampled | 2 | -20 | 0.5 |  |  |" in text
    assert "| the team itself | 0 | sampled | 2 | -10 | 1 |  |  |" in text
    assert "| the team itself | 0 | greedy | 2 | -8 | 3 |  |  |" in text
    assert "| contrast | 1 | sampled | 2 | -8 | 1 |  |  |" in text
    assert "| contrast | 1 | greedy | 2 | -6 | 5 |  | yes |" in text
    assert "sharpened |" not in text
    assert "How far does a policy come" not in text


def test_a_contrast_stands_beside_sharpening_and_on_a_front(tmp_path: Path) -> None:
    task = TASKS["contrast_nav_6_effort"]  # less effort is better
    for seed in range(205, 208):
        point = {
            "strength": 1.0,
            "sampled": [-9.0 - seed % 2, 0.3],
            "greedy": [-12.0, 0.1],
            "sharpened": [-8.0, 0.4],
        }
        cell = cell_of(task.name, "contrast", seed, -9.0, points=[point], before=[-8.0, 0.5])
        transfer.write_cell(Cell(task, "contrast", seed), cell, tmp_path / "cells")
    assert transfer.main(["--report", "--results", str(tmp_path)]) == 0
    text = (tmp_path / "transfer.md").read_text()
    assert "`effort`: less is better." in text
    assert "| the base |  | sampled | 3 | -8 [-8, -8] | 0.5 [0.5, 0.5] |  |  |" in text
    assert "| sharpened | 1 | sampled | 3 | -8 [-8, -8] | 0.4 [0.4, 0.4] |  | yes |" in text
    # -10, -9, -10 by seed, each apart from -8.
    mean = "-9.667 [-10, -9] | 0.3 [0.3, 0.3] | -1.667 [-2, -1] | yes |"
    assert f"| contrast | 1 | sampled | 3 | {mean}" in text
    assert "| contrast | 1 | greedy | 3 | -12 [-12, -12] | 0.1 [0.1, 0.1] |  | yes |" in text


TINY = """
[tiny]
question = "{question}"
title = "nav_3"
config = "configs/nav_6.toml"
strong = "configs/nav_12.toml"
steps = 1000
source_steps = 1000
fact = "mean_distance"
lower_is_better = true
seeds = [200]
variants = {variants}

[tiny.overrides]
"env.name" = "particles/nav_3"
"env.num_envs" = 4
"learner.epochs" = 1
"network.hidden_sizes" = [8]
"preferences.replay_steps" = 1000

[tiny.second_overrides]
"env.num_envs" = 4
"learner.epochs" = 1
"network.hidden_sizes" = [8]
"preferences.replay_steps" = 1000
"""


@pytest.mark.parametrize(
    ("question", "variants"),
    [
        ("calibration", ["regression"]),
        ("contrast", ["contrast"]),
        ("weak_to_strong", ["labeller", "pairs_contrast", "weak"]),
        ("warm_start", ["chi2_5"]),
        ("offline", ["bc_50", "dpo_50"]),
        ("segments", ["imap_5", "sl_25"]),
    ],
)
def test_a_trial_of_each_question(question: str, variants: list[str], tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(question=question, variants=variants))
    places = ["--tasks-file", file, "--results", tmp_path / "results", "--work", tmp_path / "work"]
    for variant in variants:
        only = ["--quick", "--only-cell", "tiny", variant, "200"]
        assert transfer.main([str(word) for word in (*places, *only)]) == 0
    found = transfer.read_cells(tmp_path / "results" / "cells")
    assert [cell["algorithm"] for cell in found] == variants
    for cell in found:
        assert cell["sampled"] < 0.0
        assert cell["greedy"] < 0.0
    assert transfer.main([str(word) for word in (*places, "--quick", "--report")]) == 0
    assert "### nav_3: return" in (tmp_path / "results" / "transfer.md").read_text()


def nav_dataset(folder: Path, episodes: int) -> PreferenceDataset:
    """Return a dataset of random play, whose returns are minus the summed mean distances."""
    config = load_config(overrides={"env.name": "particles/nav_2", "env.num_envs": 1})
    trainer = Trainer(config)
    spec, actor = trainer.env.spec, trainer.learner.actor
    policy = Policy(config=config, spec=spec, steps=0, actor=actor)
    trainer.close()
    sample_episodes(policy, folder, episodes=episodes, name="random")
    return PreferenceDataset(folder)


def test_a_segment_is_a_part_of_an_episode_that_is_interrupted(tmp_path: Path) -> None:
    given = nav_dataset(tmp_path / "whole", 1)
    whole, worth = given.episode(0), Worth("mean_distance", lower_is_better=True)
    part = cut_episode(whole, 3, 5)
    assert part.length == 5
    np.testing.assert_array_equal(part.obs, whole.obs[3:8])
    np.testing.assert_array_equal(part.final_state, whole.state[8])
    assert not part.terminated
    np.testing.assert_allclose(worth(part, given.spec), worth(whole, given.spec)[3:8])
    end = cut_episode(whole, 20, 5)
    np.testing.assert_array_equal(end.final_obs, whole.final_obs)
    assert end.terminated
    np.testing.assert_allclose(worth(whole, given.spec).sum(), whole.episode_return, rtol=1e-5)


def test_of_two_segments_the_better_is_preferred(tmp_path: Path) -> None:
    nav_dataset(tmp_path / "whole", 6)
    worth = Worth("mean_distance", lower_is_better=True)
    cut(tmp_path / "whole", tmp_path / "cut", worth, steps=5, count=10, seed=0)
    made = PreferenceDataset(tmp_path / "cut")
    assert made.spec.max_steps == 5
    answers = made.answers.answers()
    assert [(one.first, one.second) for one in answers] == [(2 * k, 2 * k + 1) for k in range(10)]
    for answer in answers:
        first, second = made.episode(answer.first), made.episode(answer.second)
        sums = [float(worth(one, made.spec).sum()) for one in (first, second)]
        assert answer.label == (1.0 if sums[0] > sums[1] else 0.0)
        assert first.length == second.length == 5


def test_an_unknown_question_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tiny.toml"
    file.write_text(TINY.format(question="why", variants=["none"]))
    with pytest.raises(ValueError, match="question 'why', expected offline, calibration"):
        transfer.load(file)
