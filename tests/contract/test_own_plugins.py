"""What the documents show as a user's own file works as it is printed there."""

import re
import sys
from pathlib import Path

import pytest

from tests.command_line import run

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"


def shown_files() -> dict[str, str]:
    """Return the code blocks that begin with a file's name, by that name."""
    text = README.read_text()
    return dict(
        re.findall(r"^```python\n# (my_\w+)\.py\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory that holds the files."""
    for name, code in shown_files().items():
        (tmp_path / f"{name}.py").write_text(code)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        ["--env.name=my_envs:two_keys"],
        ["--env.name=my_envs:two_keys", "--env.options", "reward_mode", "episodic"],
        ["--env.name=particles/nav_3", "--preferences.labeller=my_labels:sooner_is_better"],
        ["--env.name=particles/nav_3", "--reward.model=my_reward:NextObservationReward"],
    ],
)
def test_trains(flags: list[str], folder: Path) -> None:
    quick = ["--env.num-envs=4", "--learner.rollout-steps=25", "--total-steps=300"]
    quick += ["--preferences.store-steps=1000", "--run-dir", str(folder / "run")]
    assert run("train", *flags, *quick) == 0
    assert (folder / "run" / "curve.png").exists()


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("options", [[], ["--env.options", "reward_mode", "episodic"]])
def test_the_environment_passes_the_check(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that it proposes pays at the end, as the README's does."""
    assert run("check", "my_envs:two_keys", *options) == 0
    shown = capsys.readouterr().out
    assert "0 faults, 0 warnings" in shown
    assert "marl train --env.name my_envs:two_keys --env.options reward_mode episodic" in shown


def test_a_mistake_is_shown_where_it_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (folder / "my_envs.py").read_text()
    (folder / "my_envs.py").write_text(code.replace('arrays["places"] + actions', "actions[:, 2]"))
    assert run("check", "my_envs:two_keys") == 1
    line = code[: code.index("places = np.clip")].count("\n") + 1
    assert f"(my_envs.py, line {line}, in advance)" in capsys.readouterr().out


def test_arrays_that_are_lost_on_the_way_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = (folder / "my_envs.py").read_text()
    (folder / "my_envs.py").write_text(code.replace('{"places": places}', '{"place": places}'))
    assert run("check", "my_envs:two_keys") == 1
    shown = capsys.readouterr().out
    assert "advance returned the arrays keys, places, place; return those that begin makes" in shown
