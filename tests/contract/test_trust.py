"""What a run, a checkpoint or a file of somebody else names is not imported unless you say so."""

import shutil
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import marl
from marl.commands.parsing import parse
from marl.config import ConfigError
from marl.config.io import load_config, save_config
from marl.utils.checkpoint import load_checkpoint, save_checkpoint
from marl.utils.plugins import IDENTITY, check_trusted, endpoint_settings, remember
from tests.command_line import QUICK, run
from tests.llm_server import ModelServer

CODE = """
from pathlib import Path
Path("imported").touch()

import torch
from envs import make_env


def env(num_envs):
    return make_env("particles/nav_3", num_envs, reward_mode="dense")


def score(facts):
    return facts["arrived"] * 1.0


def judge(pairs):
    return (pairs.first.returns > pairs.second.returns).float()


class Model(torch.nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.score = torch.nn.Linear(spec.obs_size, 1)

    def forward(self, transitions):
        return self.score(transitions.next_obs).squeeze(-1).sum(-1)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a run and of a dataset, made by somebody else."""
    made = tmp_path_factory.mktemp("theirs")
    assert run("train", *QUICK, "--run-dir", made / "run") == 0
    assert run("export", made / "run", made / "pairs", "--pairs", "60") == 0
    return made


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with code that leaves a mark when it is imported."""
    (tmp_path / "theirs.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "theirs", raising=False)
    return tmp_path


@pytest.fixture
def strange(theirs: Path, folder: Path) -> Path:
    """The working directory with that run as ``run`` and ``own``, and the dataset as ``pairs``."""
    for name, source in (("run", "run"), ("own", "run"), ("pairs", "pairs")):
        shutil.copytree(theirs / source, folder / name)
    return folder


def trained(*flags: str) -> Path:
    assert run("train", *QUICK, "--run-dir=run", *flags) == 0
    return Path("run")


def foreign(run_folder: Path, **settings: Any) -> None:
    """Change settings in a run's file and in its checkpoint, as somebody could who sends it."""
    config = load_config(run_folder / "config.toml", settings)
    save_config(config, run_folder / "config.toml")
    step, saved = load_checkpoint(run_folder / "checkpoints")
    saved["config"] = marl.config.io.to_dict(config)
    save_checkpoint(run_folder / "checkpoints", step, saved, keep=1)


ENVIRONMENT = {"env.name": "theirs:env"}
GYM = {"env.name": "gym/theirs:Team-v0"}
OUTCOME = {"env.options.reward_mode": "outcome", "env.options.reward_outcome": "theirs:score"}
LEARNER = {"learner.kind": "theirs:Learner"}
MODEL = {"reward.model": "theirs:Model"}
ENCODER = {"network.encoder": "theirs:Encoder"}
REWARD_ENCODER = {"reward.encoder": "theirs:Encoder"}
LABELLER = {"preferences.labeller": "theirs:judge"}
DESCRIBE = {"preferences.llm.model": "stand-in", "preferences.llm.describe": "theirs:score"}
FEW = "--episodes=2 --num-envs=1"


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        (ENVIRONMENT, "evaluate run"),
        (ENVIRONMENT, "watch run"),
        (ENVIRONMENT, "label run"),
        (ENVIRONMENT, "resume run"),
        (ENVIRONMENT, "resume run --reshard"),
        (ENVIRONMENT, f"sample run made {FEW}"),
        (ENVIRONMENT, f"sample own made --rejected run {FEW}"),
        (ENVIRONMENT, f"sample own made --config run/config.toml {FEW}"),
        (GYM, "evaluate run"),
        (OUTCOME, "evaluate run"),
        (OUTCOME, "resume run"),
        (LEARNER, "evaluate run"),
        (LEARNER, "evaluate own --contrast run"),
        (LEARNER, "watch own --contrast run"),
        (LEARNER, f"sample own made --contrast run {FEW}"),
        (LEARNER, "export-policy run"),
        (LEARNER, "fit-reward pairs --model dpo --steps 1 --reference run --out fit"),
        (LEARNER, "imitate pairs --steps 1 --reference run --out fit"),
        (ENCODER, "evaluate run"),
        (ENCODER, "resume run"),
        (ENCODER, "export-policy run"),
        (ENCODER, "imitate pairs --steps 1 --out fit --config run/config.toml"),
        (ENCODER, "fit-reward pairs --model dpo --steps 1 --out fit --config run/config.toml"),
        (REWARD_ENCODER, "labels run"),
        (REWARD_ENCODER, "evaluate own --guide run"),
        (REWARD_ENCODER, "fit-reward pairs --steps 1 --out fit --config run/config.toml"),
        (MODEL, "fit-reward pairs --steps 1 --out fit --config run/config.toml"),
        (MODEL, "watch run"),
        (MODEL, "labels run"),
        (MODEL, "evaluate own --guide run"),
        (MODEL, f"sample own made --guide run {FEW}"),
        (LABELLER, "resume run"),
        (LABELLER, "export run made"),
        (LABELLER, "labels run --ask-again"),
        (DESCRIBE, "export run made --labeller llm"),
    ],
)
def test_code_of_a_strangers_run_is_refused(
    settings: dict[str, str], command: str, strange: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if command == "label run":
        pytest.importorskip("fastapi", reason="needs the extra people")
    foreign(Path("run"), **settings)
    assert run(*command.split()) == 1
    said = capsys.readouterr().err
    setting, path = list(settings.items())[-1]
    place = "run/config.toml" if "--config" in command else "run"
    assert f"error: {place} names code that would be imported and run: {setting} = {path!r}" in said
    assert "--trust" in said
    assert "Traceback" not in said
    assert not (strange / "imported").exists()


@pytest.mark.parametrize(
    "command",
    [
        "runs .",
        "compare run own --out made",
        "labels run",
        "export run made --labeller return",
        "imitate run --steps 1 --out fit",
        "fit-reward pairs --steps 1 --out fit --config run/config.toml",
        f"sample own made --guide run {FEW}",
        f"sample own made --contrast run {FEW}",
    ],
)
def test_what_needs_no_code_of_a_strangers_run_works(command: str, strange: Path) -> None:
    foreign(Path("run"), **ENVIRONMENT, **LABELLER)
    assert run(*command.split()) == 0
    assert not (strange / "imported").exists()


def test_a_run_begins_from_a_strangers(strange: Path) -> None:
    foreign(Path("run"), **ENVIRONMENT, **LABELLER)
    assert run("train", *QUICK, "--init=run", "--init-reward", "--run-dir=new") == 0
    assert not (strange / "imported").exists()


@pytest.mark.parametrize("command", ["resume run", "export run made --labeller llm"])
def test_a_strangers_run_is_sent_no_key_and_writes_no_cache(
    command: str, strange: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMETHING", "secret")
    with ModelServer() as server:
        asked = {
            "model": "stand-in",
            "base_url": server.base_url,
            "api_key_env": "SOMETHING",
            "cache": "theirs.sqlite",
        }
        asks: dict[str, Any] = {f"preferences.llm.{name}": value for name, value in asked.items()}
        if "--labeller" not in command:
            asks |= {"preferences.labeller": "llm", "preferences.queries_per_iteration": 4}
        foreign(Path("run"), **asks)
        assert run(*command.split()) == 1
    said = capsys.readouterr().err
    assert "run names a language model that would be asked, be sent your key" in said
    assert "preferences.llm.api_key_env = 'SOMETHING'" in said
    assert server.connections == []
    assert not (strange / "theirs.sqlite").exists()


def test_a_known_package_is_not_taken_from_the_working_directory(
    strange: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(strange))])
    monkeypatch.setattr("envs.adapters.gym_teams._MODULES", {"Foraging": "theirs"})
    foreign(Path("run"), **{"env.name": "gym/Foraging-5x5-2p-1f-v3"})
    assert run("evaluate", "run", *FEW.split()) == 1
    assert "No module named 'theirs'" in capsys.readouterr().err
    assert str(strange) not in sys.path


def test_a_shell_command_is_not_run(strange: Path) -> None:
    foreign(Path("run"), **{"env.name": "os:system", "env.options": {"command": "touch imported"}})
    assert run("evaluate", "run") == 1
    assert not (strange / "imported").exists()


@pytest.mark.usefixtures("folder")
def test_ones_own_run_is_trusted_until_its_code_changes() -> None:
    trained("--env.name=theirs:env")
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == 0
    foreign(Path("run"), **LABELLER)
    assert run("evaluate", "run", "--episodes=1", "--num-envs=1") == 1


def test_shipped_names_need_no_trust(strange: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(strange / "elsewhere"))
    assert run("evaluate", "run", *FEW.split()) == 0
    assert not (strange / "elsewhere").exists()


def test_trust_is_a_flag(strange: Path) -> None:
    foreign(Path("run"), **ENVIRONMENT)
    assert run("evaluate", "run", *FEW.split()) == 1
    assert not (strange / "imported").exists()
    assert run("evaluate", "run", *FEW.split(), "--trust") == 0
    assert (strange / "imported").exists()


@pytest.mark.parametrize(("answer", "status"), [("y\n", 0), ("\n", 1), ("n\n", 1)])
def test_a_terminal_is_asked(
    answer: str, status: int, strange: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return answer

    foreign(Path("run"), **ENVIRONMENT)
    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert run("evaluate", "run", *FEW.split()) == status
    assert (strange / "imported").exists() == (status == 0)


def test_a_file_of_settings_is_asked_about_what_the_command_line_does_not_name(
    folder: Path,
) -> None:
    (folder / "found.toml").write_text('[env]\nname = "theirs:env"\n')
    rest = [*QUICK[1:], "--total-steps=100", "--config=found.toml"]
    assert run("train", *rest, "--run-dir=a") == 2
    assert not (folder / "imported").exists()
    assert run("train", *rest, "--run-dir=b", "--env.name", "theirs:env") == 0
    assert run("train", *rest, "--run-dir=c", "--trust") == 0


def test_a_file_of_settings_sends_no_key_where_the_command_line_does_not(folder: Path) -> None:
    """What `parse` returns would be trained; nothing is."""
    (folder / "found.toml").write_text(
        '[preferences]\nlabeller = "llm"\nqueries_per_iteration = 1\n[preferences.llm]\n'
        'model = "m"\nbase_url = "http://127.0.0.1:9/v1"\napi_key_env = "SOMETHING"\n'
    )
    train = ["train", "--config=found.toml"]
    url = "--preferences.llm.base-url=http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError, match=r"found\.toml names a language model .*\.base_url = "):
        parse(train)
    with pytest.raises(ConfigError, match=r"sent your key.*: preferences\.llm\.api_key_env = 'S"):
        parse([*train, url])
    for more in ([url, "--preferences.llm.api-key-env", "SOMETHING"], ["--trust"]):
        parse([*train, *more])
    parse([*train, "--preferences.labeller", "return"])  # nothing is asked


def test_a_labelling_run_is_asked_about_its_model(
    strange: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(Path("run"), **MODEL)
    labels = ["--preferences.labeller=model", "--preferences.model.run=run"]
    assert run("train", *QUICK, *labels, "--run-dir=second") == 1
    assert "reward.model = 'theirs:Model'" in capsys.readouterr().err
    assert not (strange / "imported").exists()


def test_a_strangers_policy_acts_without_its_environment(strange: Path) -> None:
    foreign(Path("run"), **ENVIRONMENT)
    policy = marl.load("run")
    spec = policy.spec
    policy.act([[0.0] * spec.obs_size] * spec.num_agents)
    with pytest.raises(ConfigError, match="trust=True"):
        policy.open_env(1)
    assert not (strange / "imported").exists()
    with marl.load("run", trust=True).open_env(1) as env:
        assert env.spec.num_envs == 1


def test_a_run_is_ones_own_with_the_language_model_that_it_names(tmp_path: Path) -> None:
    settings = {"preferences.llm.model": "stand-in", "preferences.llm.cache": "mine.sqlite"}
    (tmp_path / IDENTITY).write_text("its id")
    config = load_config(overrides=settings)
    remember("its id", config)
    for cache, is_own in (("mine.sqlite", True), ("other.sqlite", False)):
        now = load_config(overrides=settings | {"preferences.llm.cache": cache})
        asked = endpoint_settings(replace(now.preferences, labeller="llm"))
        assert asked == {"preferences.llm.cache": cache}
        with nullcontext() if is_own else pytest.raises(ConfigError, match="a language model"):
            check_trusted({}, tmp_path, now, asked)
