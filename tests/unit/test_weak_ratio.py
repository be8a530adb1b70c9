"""The ratio of a weak team's policies as a reward: by hand, for other sizes, and from checkpoints.

Axes: M episodes, K steps, N agents.
"""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import marl
from envs import make_env
from marl.config import ConfigError, ContrastConfig
from marl.data.types import History, Transitions
from marl.learners.distributions import Categorical, Gaussian
from marl.rewards.ratio import PolicyRatio
from marl.rewards.weak_ratio import PlausibleRatio, load_weak_ratio, plausible_ratio
from marl.utils.checkpoint import list_checkpoints
from tests.command_line import QUICK, run
from tests.reward_models import generator
from tests.teams import Recurrence, team


def categorical(*probabilities: float) -> Categorical:
    return Categorical(torch.tensor(probabilities).log().view(1, 1, -1))


def test_the_ratio_of_plausible_actions_by_hand() -> None:
    after, before = categorical(0.9, 0.095, 0.005), categorical(0.5, 0.47, 0.03)
    found = [float(plausible_ratio(after, before, torch.tensor([[action]]))) for action in range(3)]
    # .095 is a tenth of .9 and more; .005 and .03 are less than a tenth of .9 and of .5.
    assert found == pytest.approx([math.log(0.9 / 0.5), math.log(0.095 / 0.47), 0.0])
    # What only the earlier policy did is plausible: that it was given up tells much.
    given_up = plausible_ratio(
        categorical(0.999, 0.001), categorical(0.5, 0.5), torch.tensor([[1]])
    )
    assert float(given_up) == pytest.approx(math.log(0.001 / 0.5))


def test_the_ratio_of_gaussians_counts_each_dimension_by_itself() -> None:
    # A tenth of the density stands sqrt(2 ln 10) = 2.146 deviations from the mean.
    log_std = torch.zeros(1, 2)
    after = Gaussian(torch.tensor([[[1.0, 0.0]]]), log_std, None)
    before = Gaussian(torch.tensor([[[0.0, 0.0]]]), log_std + math.log(2.0), None)
    # First dimension at 1: (1/4 - 0) / 2 + log 2. Second at 4.2: 4.2 and 2.1 deviations away, of
    # which the second counts: (2.1^2 - 4.2^2) / 2 + log 2.
    actions = torch.tensor([[[1.0, 4.2]]])
    expected = 0.125 + math.log(2.0) + 0.5 * (2.1**2 - 4.2**2) + math.log(2.0)
    assert float(plausible_ratio(after, before, actions)) == pytest.approx(expected, rel=1e-5)
    # At 4.4 both are further away than that: it tells nothing.
    actions = torch.tensor([[[1.0, 4.4]]])
    assert float(plausible_ratio(after, before, actions)) == pytest.approx(0.125 + math.log(2.0))
    present = torch.tensor([[False, True]])
    ragged = (dataclasses.replace(each, present=present) for each in (after, before))
    assert float(plausible_ratio(*ragged, torch.tensor([[[1.0, 4.4]]]))) == 0.0


def steps_of(count: int, *lead: int, history: History | None = None) -> Transitions:
    """Return random steps of `count` particles."""
    source = generator()
    return Transitions(
        obs=torch.randn((*lead, count, 6), generator=source),
        state=torch.randn((*lead, 6 * count), generator=source),
        actions=torch.randint(5, (*lead, count), generator=source),
        next_obs=torch.randn((*lead, count, 6), generator=source),
        next_state=torch.randn((*lead, 6 * count), generator=source),
        terminated=torch.zeros(lead, dtype=torch.bool),
        history=history,
    )


def ratio_of(recurrence: Recurrence = "none", clip: float = 1e6) -> PlausibleRatio:
    after, before = team("particles/nav_3", 0, recurrence), team("particles/nav_3", 1, recurrence)
    return PlausibleRatio(after.actor, before.actor, 3, clip)  # type: ignore[arg-type]  # ours


def history_of(*lead: int) -> History:
    starts = torch.zeros(lead, dtype=torch.bool)
    starts[:, 0] = starts[:, 4] = True
    return History(starts=starts, time_axis=1)


@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_it_is_the_policy_ratio_where_actions_are_plausible(recurrence: Recurrence) -> None:
    model = ratio_of(recurrence)
    steps = steps_of(3, 5, 7, history=None if recurrence == "none" else history_of(5, 7))
    found = model(steps)
    expected = PolicyRatio(model.after, model.before, 1.0)(steps)  # type: ignore[arg-type]
    assert found.local is not None
    assert expected.local is not None
    is_plausible = found.local != 0.0
    torch.testing.assert_close(found.local[is_plausible], expected.local[is_plausible])
    share = float(is_plausible.float().mean())
    assert share > 0.3
    assert share < 1.0 or recurrence == "gru"  # whose untrained distributions are nearly flat
    torch.testing.assert_close(found.team, found.local.sum(dim=-1))


@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_a_team_of_seven_is_judged_as_teams_of_three(recurrence: Recurrence) -> None:
    model = ratio_of(recurrence)
    history = None if recurrence == "none" else history_of(5, 6)
    steps = steps_of(7, 5, 6, history=history)
    found = model(steps).local
    assert found is not None
    for agents in ([0, 1, 2], [3, 4, 5]):
        part = dataclasses.replace(
            steps,
            obs=steps.obs[..., agents, :],
            next_obs=steps.next_obs[..., agents, :],
            actions=steps.actions[..., agents],
        )
        torch.testing.assert_close(found[..., agents], model(part).local)
    assert found.shape == (5, 6, 7)
    assert found[..., 6].abs().max() > 0.0


def test_each_agents_ratio_is_clipped_and_the_absent_have_none() -> None:
    model = ratio_of(clip=0.1)
    alive = torch.ones(5, 7, 3, dtype=torch.bool)
    alive[:, 3:, 1] = False
    steps = dataclasses.replace(steps_of(3, 5, 7), alive=alive)
    local = model(steps).local
    assert local is not None
    assert float(local.abs().max()) == pytest.approx(0.1)
    assert (local[:, 3:, 1] == 0.0).all()
    assert (local[:, :3, 1] != 0.0).any()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weak run with three checkpoints, another one, and one that started from the weak one."""
    folder = tmp_path_factory.mktemp("weak")
    small = ["--network.hidden-sizes", "8", "--learner.epochs=1"]
    flags = [*QUICK, *small, "--checkpoint-every=100", "--run-dir"]
    assert run("train", *flags, folder / "weak") == 0
    assert run("train", *flags, folder / "other", "--total-steps=200") == 0
    init = ["--init", folder / "weak", "--total-steps=100"]
    assert run("train", *flags, folder / "tuned", *init) == 0
    return folder


def test_two_checkpoints_of_a_run_are_loaded_frozen(runs: Path) -> None:
    early = list_checkpoints(runs / "weak" / "checkpoints")[-1]
    config = ContrastConfig(before=str(early), after=str(runs / "weak"), clip=3.0)
    learner = load_weak_ratio(config, make_env("particles/nav_7", 1).spec)
    assert not any(parameter.requires_grad for parameter in learner.model.parameters())
    steps = steps_of(7, 2, 3)
    expected = PlausibleRatio(
        marl.load(runs / "weak").actor,  # type: ignore[arg-type]  # ours
        marl.load(early).actor,  # type: ignore[arg-type]
        3,
        3.0,
    )(steps)
    torch.testing.assert_close(learner.model(steps).local, expected.local)
    tuned = ContrastConfig(before=str(runs / "weak"), after=str(runs / "tuned"))
    load_weak_ratio(tuned, make_env("particles/nav_3", 1).spec)


@pytest.mark.parametrize(
    ("before", "after", "env", "words"),
    [
        ("other", "weak", "nav_3", "are of two different runs, whose ratio says nothing"),
        ("tuned", "weak", "nav_3", "tuned started from .*weak, .*; swap before and after"),
        ("weak", "weak", "nav_3", r"\(300 steps\) is not earlier than .* \(300 steps\)"),
        ("early", "weak", "spread_3", r"preferences.contrast.before: the policy of .*may not"),
    ],
)
def test_what_says_nothing_is_one_line(
    before: str, after: str, env: str, words: str, runs: Path
) -> None:
    early = list_checkpoints(runs / "weak" / "checkpoints")[-1]
    places = {"early": early} | {name: runs / name for name in ("weak", "other", "tuned")}
    config = ContrastConfig(before=str(places[before]), after=str(places[after]))
    with pytest.raises(ConfigError, match=words) as caught:
        load_weak_ratio(config, make_env(f"particles/{env}", 1).spec)
    assert "\n" not in str(caught.value)


def test_a_strong_team_learns_from_it_and_goes_on_without_it(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "weak", tmp_path / "weak")
    early = list_checkpoints(tmp_path / "weak" / "checkpoints")[-1]
    labeller: list[Any] = ["--preferences.labeller=contrast", "--preferences.contrast.before"]
    labeller += [early, "--preferences.contrast.after", tmp_path / "weak"]
    flags = ["--env.name=particles/nav_6", "--total-steps=200", *labeller]
    assert run("train", *QUICK, *flags, "--run-dir", tmp_path / "strong") == 0
    assert run("resume", tmp_path / "strong") == 0
    assert run("export", tmp_path / "strong", tmp_path / "pairs", "--pairs=10") == 0
    answers = (tmp_path / "pairs" / "answers.jsonl").read_text()
    assert f'"source":"contrast:{tmp_path / "weak"}"' in answers.replace(": ", ":")


@pytest.mark.parametrize(
    "settings",
    [
        {"preferences.labeller": "contrast"},
        {"preferences.labeller": "contrast", "preferences.contrast.after": "runs/RUN"},
        {"preferences.contrast.before": "a", "preferences.contrast.after": "b"},
    ],
)
def test_both_checkpoints_are_named_for_this_labeller_only(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"preferences\.contrast: got before"):
        marl.load_config(overrides=settings)
