"""`marl evaluate --contrast`, `--guide` and `marl watch --contrast`: a curve with its controls."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import marl
from marl.contrast import contrasted
from marl.evaluation import evaluate
from marl.utils.checkpoint import list_checkpoints
from tests.command_line import QUICK, run

FEW = ("--episodes", "4", "--num-envs", "2")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with checkpoints after 100, 200 and 300 steps."""
    folder = tmp_path_factory.mktemp("steering") / "run"
    flags = ["--checkpoint-every=100", "--learner.learning-rate=0.05", "--run-dir", folder]
    assert run("train", *QUICK, *flags) == 0
    return folder


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six agents."""
    folder = tmp_path_factory.mktemp("steering") / "other"
    flags = ["--env.name=particles/nav_6", "--total-steps=100", "--run-dir", folder]
    assert run("train", *QUICK, *flags) == 0
    return folder


@pytest.mark.usefixtures("drawn")
def test_the_curve_stands_beside_its_controls(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    early, out = list_checkpoints(source / "checkpoints")[-1], tmp_path / "curve.json"
    strengths = ["--strength", "-1", "0", "2"]
    flags = ["--contrast", early, *strengths, "--out", out]
    assert run("evaluate", source, *FEW, *flags) == 0
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("strength", "sharpened", "after 300 steps, contrast to"))
    report = json.loads(out.read_text())
    assert [point["strength"] for point in report["points"]] == [-1.0, 0.0, 2.0]
    base, tuned, strong = report["points"]
    assert base["sharpened"] is None
    assert tuned["sharpened"] == tuned["sampled"]
    assert tuned["greedy"] == report["greedy"]
    assert f"has {report['greedy']['mean']:.2f}" in shown.replace("\n", " ")

    def returns(policy: marl.Policy, greedy: bool) -> list[float]:
        played = evaluate(policy, greedy=greedy, episodes=4, seed=0, num_envs=2).returns
        return [float(value) for value in played]

    first, last = marl.load(early), marl.load(source)
    np.testing.assert_allclose(base["sampled"]["returns"], returns(first, False), rtol=1e-5)
    assert tuned["sampled"]["returns"] == returns(last, False)
    assert strong["sampled"]["returns"] == returns(contrasted(last, first, 2.0), False)
    assert strong["sharpened"]["returns"] == returns(contrasted(last, None, 2.0), False)
    assert strong["sampled"]["returns"] != strong["sharpened"]["returns"]
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size[0] > 400


def test_a_uniform_contrast_is_sharpening_and_a_run_can_guide_itself(source: Path) -> None:
    flags = ["--contrast", "uniform", "--strength", "1"]
    assert run("evaluate", source, *FEW, *flags) == 0
    (point,) = json.loads((source / "contrast.json").read_text())["points"]
    assert point["sampled"] == point["sharpened"]
    assert run("evaluate", source, *FEW, "--guide", source, "--strength", "0", "50") == 0
    report = json.loads((source / "guidance.json").read_text())
    assert report["steering"] == f"guided by {source}"
    none, strong = report["points"]
    assert none["sampled"]["returns"] != strong["sampled"]["returns"]


def test_a_contrast_is_filmed(source: Path, tmp_path: Path) -> None:
    early = list_checkpoints(source / "checkpoints")[-1]
    for name, flags in (
        ("a.gif", ["--contrast", early]),
        ("b.gif", ["--guide", source, "--strength", "2"]),
    ):
        film = tmp_path / name
        assert run("watch", source, "--out", film, "--max-frames", "2", *flags) == 0
        with Image.open(film) as movie:
            assert movie.n_frames == 2


@pytest.mark.parametrize("command", ["evaluate", "watch"])
def test_a_wrong_request_says_what_to_do(
    command: str, source: Path, other: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    for flags, words in (
        (["--strength", "1"], "name the base by --contrast, or a reward by --guide"),
        (["--contrast", "uniform", "--guide", source], "got both; a team is steered by one"),
        (["--contrast", other], "contrast: the policy of"),
        (["--contrast", source], "is the team itself, after 300 steps; name an"),
        (["--contrast", "uniform", "--strength", "-2"], "strength: got -2, expected a number of"),
        (["--guide", tmp_path], "--guide:"),
    ):
        assert run(command, source, *flags) == 1
        said = capfd.readouterr().err
        assert words in said.replace("\n", " ")
        assert "Traceback" not in said
