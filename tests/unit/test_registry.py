"""`make_env` finds environments by name or import path, and says what is wrong with the rest."""

import sys
import types
from pathlib import Path

import pytest

from envs import EnvError, SimulatedEnv, SparseRewards, env_names, make_env, particles
from envs.registry import EXTRAS, FAMILIES, Family, Maker

TWO_KEYS = """
from envs.probes import masked

class Half:
    def __init__(self, num_envs): ...

class NoCopies:
    def __init__(self, width): ...

class Needs:
    def __init__(self, num_envs, width): ...

def two_keys(num_envs, width=2):
    return masked(num_envs, max_steps=width)
"""


@pytest.fixture
def my_envs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_test_envs.py").write_text(TWO_KEYS)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_test_envs", raising=False)


def test_names() -> None:
    names = env_names()
    assert len(set(names)) == len(names)
    for name in ("mamujoco/halfcheetah_2x3", "fleet/halfcheetah_4", "particles/nav_6"):
        assert name in names


def test_sizes_in_names() -> None:
    assert make_env("particles/nav_9", 2).spec.num_agents == 9
    assert make_env("particles/spread_4", 2).spec.state_size == 4 * (4 + 8 + 6)


def test_robots_by_name() -> None:
    assert make_env("mamujoco/halfcheetah_2x3", 1).spec.name == "mamujoco/halfcheetah_2x3"
    assert make_env("fleet/halfcheetah_3", 1).spec.num_agents == 3


def test_options_arrive() -> None:
    assert make_env("probe/coordination", 2, num_cues=5).spec.action_sizes == (5, 5)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("particle/nav_6", "did you mean 'particles/nav_6'"),
        ("probe/coordinatoin", "did you mean 'probe/coordination'"),
        ("mamujoco/halfcheeta_2x3", "did you mean 'mamujoco/halfcheetah_2x3'"),
        ("fleet/halfcheeta_4", "did you mean 'fleet/halfcheetah_4'"),
        ("fleet/halfcheetah_x", "fleet"),
        ("mamujoco/hopper_2x9", "3x1"),
        ("particles/nav_six", "after particles/ there are nav_3, nav_6"),
        ("nav_6", "did you mean 'particles/nav_6'?"),
        ("halfcheetah_2x3", "did you mean 'mamujoco/halfcheetah_2x3'?"),
        ("zzz", "or a name that begins with mamujoco/, fleet/, particles/, gym/"),
        ("particles/nav_0", "num_agents is 0"),
    ],
)
def test_unknown_name(name: str, words: str) -> None:
    with pytest.raises(EnvError) as caught:
        make_env(name, 2)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.usefixtures("my_envs")
def test_a_file_of_that_name_is_suggested_with_what_it_defines() -> None:
    words = (
        r"of my_test_envs.py, give my_test_envs:Half or my_test_envs:NoCopies or "
        r"my_test_envs:Needs or my_test_envs:two_keys$"
    )
    for name in ("my_test_envs", "my_test_envs.py"):
        with pytest.raises(EnvError, match=words):
            make_env(name, 2)


@pytest.mark.usefixtures("my_envs")
def test_a_misspelt_module_of_an_installed_package_is_not_a_missing_extra() -> None:
    with pytest.raises(EnvError) as caught:
        make_env("pettingzoo.sisl.pursuit_v44:parallel_env", 2)
    message = str(caught.value)
    assert message.startswith(
        "environment 'pettingzoo.sisl.pursuit_v44:parallel_env': pettingzoo.sisl is installed but "
        "has no module 'pursuit_v44' (did you mean 'pursuit_v"
    )
    assert "multiwalker" in message
    assert "pip install" not in message
    with pytest.raises(EnvError, match="my_test_envs is a module, not a package"):
        make_env("my_test_envs.more:Half", 2)


def test_unknown_option() -> None:
    with pytest.raises(EnvError) as caught:
        make_env("probe/masked", 2, max_step=3)
    assert str(caught.value) == (
        "environment 'probe/masked' has no option 'max_step' (did you mean 'max_steps'?); "
        "its options are max_steps, reward_mode, reward_every, reward_outcome"
    )
    with pytest.raises(EnvError, match="the name already sets num_agents=6"):
        make_env("particles/nav_6", 2, num_agents=3)


@pytest.mark.usefixtures("my_envs")
def test_import_path() -> None:
    assert make_env("my_test_envs:two_keys", 2, width=3).spec.max_steps == 3


@pytest.mark.usefixtures("my_envs")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such_file:TwoKeys", "no module 'no_such_file'"),
        ("my_test_envs:Hal", "did you mean 'Half'"),
        ("my_test_envs:Half", "without spec, reset, step, state_dict, load_state_dict"),
        ("my_test_envs:NoCopies", "takes no num_envs"),
        ("my_test_envs:Needs", "give it with `--env.options width VALUE`"),
        ("my_test_envs.py:Half", "name the module: my_test_envs:Half"),
        (":TwoKeys", "lacks a side of its colon"),
    ],
)
def test_import_path_errors(name: str, words: str) -> None:
    with pytest.raises(EnvError) as caught:
        make_env(name, 2)
    assert words in str(caught.value)


@pytest.mark.usefixtures("my_envs")
def test_import_error_inside_the_users_file_names_what_is_missing() -> None:
    message = "importing 'needs_more' failed: .*'a_package_that_is_not_there'"
    with pytest.raises(EnvError, match=message):
        make_env("needs_more:Anything", 2)


def test_a_family_is_one_line_and_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_family")
    vars(module).update(maker=lambda member: None if member else Maker(particles.nav))
    monkeypatch.setitem(sys.modules, "my_family", module)
    monkeypatch.setitem(FAMILIES, "mine", Family(module="my_family", summary="a test", names=("",)))
    assert "mine" in env_names()
    assert make_env("mine", 2, num_agents=4).spec.num_agents == 4
    assert isinstance(make_env("mine", 2), SimulatedEnv)
    assert isinstance(make_env("mine", 2, reward_mode="dense"), SparseRewards)
    with pytest.raises(EnvError, match="there is no environment 'mine/other'"):
        make_env("mine/other", 2)


def test_a_family_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(module="no.such", summary="battles", needs="no_such_package")
    monkeypatch.setitem(EXTRAS, "no_such_package", "battles")
    monkeypatch.setitem(FAMILIES, "battle", family)
    assert not any(name.startswith("battle") for name in env_names())
    with pytest.raises(EnvError, match=r"pip install -c constraints.txt '.\[battles\]'"):
        make_env("battle/royale", 2)


@pytest.mark.parametrize("prefix", FAMILIES)
def test_every_listed_name_can_be_made(prefix: str) -> None:
    family = FAMILIES[prefix]
    if not family.is_installed:
        pytest.skip(f"needs {family.needs}")
    for member in family.members():
        assert isinstance(family.maker(member), Maker), member
    assert family.maker("no such member") is None or prefix == "gym"
