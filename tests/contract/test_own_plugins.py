"""What the documents show as a user's own file works as it is printed there."""

import os
import re
import sys
from pathlib import Path

import pytest

from tests.command_line import QUICK, run

ROOT = Path(__file__).parents[2]
GUIDES = (ROOT / "README.md", ROOT / "envs/README.md")


def shown_files() -> dict[str, str]:
    """Return the code blocks that begin with a file's name, by that name."""
    text = "\n".join(guide.read_text() for guide in GUIDES)
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
        ["--env.name=particles/nav_3", "--preferences.labeller=my_labels:longer_is_better"],
        ["--env.name=particles/nav_3", "--reward.model=my_reward:NextObservationReward"],
    ],
)
def test_trains(flags: list[str], folder: Path) -> None:
    quick = ["--env.num-envs=4", "--learner.rollout-steps=25", "--total-steps=300"]
    quick += ["--preferences.replay-steps=1000", "--run-dir", str(folder / "run")]
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
    assert "returned the arrays keys, places, place; return those that begin makes" in shown


def complaint(command: str, name: str, capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Return the one line in which `marl check` or `marl train` says what is wrong."""
    given = [name] if command == "check" else ["--env.name", name, *QUICK[1:], "--run-dir=run"]
    assert run(command, *given, *(["--env.options", *options] if options else [])) == 1
    captured = capfd.readouterr()
    lines = [line for line in captured.out.splitlines() if line.startswith("- ")]
    lines += [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, captured
    assert "Traceback" not in captured.out + captured.err
    return lines[0]


FAULTS = {
    "no limit": (
        "        max_steps=10,\n",
        "",
        "making it raised TypeError: EnvSpec.__init__() missing 1 required keyword-only argument: "
        "'max_steps' (my_envs.py, line N, in two_keys)",
    ),
    "broken factory": (
        "    spec = EnvSpec(",
        "    spec = EnvSpce(",
        "making it raised NameError: name 'EnvSpce' is not defined (my_envs.py, line N, in two_",
    ),
    "no advance": (
        "def advance(",
        "def advnace(",
        "the task Keys (my_envs.py, line N) lacks advance(self, arrays, steps, actions); a ",
    ),
    "floats": (
        "np.zeros(len(here), bool)",
        "np.zeros(len(here))",
        "Keys.advance (my_envs.py, line N) returned terminated as float64 of shape (4,); return "
        "bool of shape (4,), one each",
    ),
    "a number among the arrays": (
        '{"keys": keys, ',
        '{"keys": keys, "round": 0, ',
        "Keys.begin (my_envs.py, line N) returned 'round' as a int; return a numpy array whose "
        "first axis is the 4 environments that begin",
    ),
    "a task that raises": (
        'arrays["places"] + actions',
        'arrays["place"] + actions',
        "advance raised KeyError: 'place' (my_envs.py, line N, in advance)",
    ),
    "no view": (
        "return View(obs=obs, state=obs.reshape(-1, 20))",
        "return obs",
        "view returned a ndarray; return envs.View(obs=..., state=...): Keys.view (my_envs.py, ",
    ),
    "its own number of copies": (
        "num_envs=num_envs",
        "num_envs=7",
        "'my_envs:two_keys' was asked for 4 environments and made 7; give EnvSpec the "
        "num_envs that two_keys (my_envs.py, line N) is called with",
    ),
}
"""What is changed in the README's environment, and what is said then."""


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_environment_is_one_line(
    fault: str, command: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    right, wrong, words = FAULTS[fault]
    file = folder / "my_envs.py"
    code = file.read_text()
    assert right in code
    file.write_text(code.replace(right, wrong))
    said = re.sub(r"line \d+", "line N", complaint(command, "my_envs:two_keys", capfd))
    assert words in said


VILLAGE = """
from tests.village import Village

class Closed(Village):
    def reset(self, seed=None, options=None):
        if seed:
            raise RuntimeError("the gate is locked")
        return super().reset(seed, options)

class Shut(Village):
    def reset(self, seed=None, options=None):
        raise RuntimeError("no gate")
"""


@pytest.mark.parametrize("command", ["check", "train"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["my_village:Shut", "max_steps", "5"],
            "making it raised RuntimeError: no gate (my_village.py, line 12, in reset); correct",
        ),
        (
            ["my_village:Closed", "max_steps", "5", "workers", "0"],
            "raised RuntimeError: the gate is locked (my_village.py, line 7, in reset); correct",
        ),
        (
            ["my_village:Village", "max_steps", "5", "workers", "two"],
            "workers is 'two'; give 0 (this process) or more",
        ),
    ],
)
def test_a_fault_in_a_pettingzoo_team_is_one_line(
    arguments: list[str],
    words: str,
    command: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (folder / "my_village.py").write_text(VILLAGE)
    monkeypatch.delitem(sys.modules, "my_village", raising=False)
    name, *options = arguments
    assert words in complaint(command, name, capfd, *options)


def test_a_fault_found_while_playing_is_told_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_village.py").write_text(
        "from tests.village import Village\n"
        "def unlike():\n"
        "    return Village(rewards=(1.0, 2.0, 3.0))\n"
    )
    monkeypatch.delitem(sys.modules, "my_village", raising=False)
    line = complaint("check", "my_village:unlike", capfd, "max_steps", "9", "workers", "0")
    assert line.startswith("- my_village:unlike, copy 0 (episode 0, reset(seed=")
    assert "agents were paid differently (" in line
    assert "set `--env.options team_reward mean`; a competition is not learned so" in line
    assert "in any order of calls" not in line
    assert "contextlib" not in line


def test_the_check_notices_a_copy_that_hangs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "my_village.py").write_text(
        "import time\n"
        "from tests.village import Village\n"
        "class Stuck(Village):\n"
        "    def step(self, actions):\n"
        "        while True:\n"
        "            time.sleep(0.01)\n"
    )
    monkeypatch.delitem(sys.modules, "my_village", raising=False)
    # On one core no worker pays, and nothing is measured.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    line = complaint("check", "my_village:Stuck", capfd, "max_steps", "9", "timeout", "0.5")
    assert "did not come back from one call within 0.5 s" in line
