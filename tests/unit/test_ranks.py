"""Two processes, each with half of the data, come to what one process with all of it comes to."""

import copy

import pytest
import torch
from torch import Tensor, nn

from envs import EnvError
from marl.config import LearnerConfig, NetworkConfig
from marl.data.types import EpisodeBatch, Rewards
from marl.learners.gae import standardise
from marl.learners.mappo import Ippo, Mappo
from marl.nn.layers import NonFiniteError, check_finite, masked_mean, mean_count, mean_shares
from marl.nn.normalisation import InputNorm, TeamNorm, ValueNorm
from marl.nn.optimizer import Optimizer
from marl.rewards import FactoredReward, RewardLearner
from marl.utils.ranks import PeerError, Ranks, together
from tests.learners import NETWORK, RECURRENT, collect, generator, make_mappo, random_rewards
from tests.ranks import in_ranks
from tests.reward_models import CPU, batch_of, make_model, uniform_policy
from tests.scripted import ScriptedEnv
from tests.two_halves import Served, assert_agree, of_envs, rollout_of, work

BOTH = pytest.mark.parametrize("dies", [False, True], ids=["alive", "dying"])


def halves(x: Tensor, rank: int) -> Tensor:
    """Return a process's part: 5 rows of the first, the rest of the second."""
    return x[:5] if rank == 0 else x[5:]


def some(*shape: int, seed: int = 0) -> Tensor:
    return 3.0 + 2.0 * torch.randn(shape, generator=generator(seed))


def test_one_process_alone_is_the_identity() -> None:
    ranks, x, module = Ranks.single(), some(3), nn.Linear(2, 2)
    before = copy.deepcopy(module.state_dict())
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.sum_(x, "x") is x
    assert torch.equal(x, some(3))
    ranks.broadcast_(module)
    assert torch.equal(module.weight, before["weight"])
    assert (ranks.any(True), ranks.any(False)) == (True, False)
    assert ranks.gather("mine") == ["mine"]


@BOTH
def test_advantages_are_standardised_over_all_processes(dies: bool) -> None:
    x = some(12, 2)
    present = torch.rand((12, 2), generator=generator(1)) < 0.6 if dies else None
    whole = standardise(x, present)

    def work(ranks: Ranks) -> Tensor:
        mine = None if present is None else halves(present, ranks.rank)
        return standardise(halves(x, ranks.rank), mine, ranks)

    found = torch.cat(in_ranks(2, work))
    assert torch.allclose(found, whole, atol=1e-6)
    assert not torch.allclose(standardise(halves(x, 0)), whole[:5], atol=1e-2)


def test_a_process_whose_agents_are_all_dead_takes_part() -> None:
    x, present = some(12), torch.arange(12) >= 5

    def work(ranks: Ranks) -> Tensor:
        return standardise(halves(x, ranks.rank), halves(present, ranks.rank), ranks)

    assert torch.allclose(torch.cat(in_ranks(2, work)), standardise(x, present), atol=1e-6)


@BOTH
def test_normalisers_see_the_rows_of_all_processes(dies: bool) -> None:
    batches = [some(12, 2, 3, seed=seed) for seed in (0, 1)]
    present = torch.rand((12, 2), generator=generator(2)) < 0.5 if dies else None
    if present is not None:
        present[:5, 1] = False  # of the first process agent 1 is absent throughout
    inputs, values = InputNorm(2, 3), ValueNorm()
    for batch in batches:
        inputs.update(batch, present)
        values.update(batch[..., 0], present)

    def work(ranks: Ranks) -> tuple[InputNorm, ValueNorm]:
        mine = None if present is None else halves(present, ranks.rank)
        norms = InputNorm(2, 3), ValueNorm()
        for batch in batches:
            part = halves(batch, ranks.rank)
            norms[0].update(part, mine, ranks)
            norms[1].update(part[..., 0], mine, ranks)
        return norms

    for found in in_ranks(2, work):
        for norm, whole in zip(found, (inputs, values), strict=True):
            for name, tensor in whole.state_dict().items():
                assert torch.allclose(norm.state_dict()[name], tensor, rtol=1e-5), name


def test_no_rows_anywhere_leave_value_statistics_alone() -> None:
    def work(ranks: Ranks) -> float:
        norm = ValueNorm()
        norm.update(torch.ones(3), torch.zeros(3, dtype=torch.bool), ranks)
        return norm.weight.item()

    assert in_ranks(2, work) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("rows", "expected"), [((3, 5), 4.0), ((0, 4), 2.0), ((0, 1), 0.5), ((0, 0), 0.5)]
)
def test_the_count_of_a_mean_over_two_processes_by_hand(
    rows: tuple[int, int], expected: float
) -> None:
    # Half of all rows, of which there is at least one.
    def work(ranks: Ranks) -> float:
        return float(mean_count(torch.arange(6) < rows[ranks.rank], ranks))

    assert in_ranks(2, work) == [expected, expected]


@BOTH
def test_a_gradient_step_is_one_on_the_rows_of_all_processes(dies: bool) -> None:
    """Means are over all rows, although the processes have different numbers of them."""
    x = some(10, 4)
    present = torch.arange(10) >= 3 if dies else None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        begin = nn.Linear(4, 1)

    def step(rows: Tensor, mine: Tensor | None, ranks: Ranks) -> dict[str, Tensor]:
        network = copy.deepcopy(begin)
        optimizer = Optimizer(network.parameters(), 0.1, 0.5, ranks=ranks)
        count = None if mine is None else mean_count(mine, ranks)
        losses = network(rows).squeeze(-1) ** 2
        shares = mean_shares(losses, mine, count)
        loss = masked_mean(losses, mine, count)
        assert torch.allclose(loss, (losses * shares).sum(), rtol=1e-5)
        optimizer.minimize(loss)
        return network.state_dict()

    def work(ranks: Ranks) -> dict[str, Tensor]:
        mine = None if present is None else halves(present, ranks.rank)
        return step(halves(x, ranks.rank), mine, ranks)

    whole = step(x, present, Ranks.single())
    first, second = in_ranks(2, work)
    for name, tensor in whole.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], tensor, atol=1e-6), name


@BOTH
@pytest.mark.parametrize("network", [NETWORK, RECURRENT], ids=["none", "gru"])
@pytest.mark.parametrize("kind", [Mappo, Ippo])
def test_an_update_of_two_processes_is_that_of_one(
    kind: type[Mappo], network: NetworkConfig, dies: bool
) -> None:
    lengths = [[3, 5], [2, 7], [4, 2, 6], [5]]
    settings = LearnerConfig(epochs=2, minibatches=1, chunk_length=5, entropy_coef=0.01)

    def new(rows: list[list[int]], ranks: Ranks) -> Mappo:
        spec = ScriptedEnv(rows, agents_die=dies).spec
        return kind(
            spec,
            network,
            settings,
            TeamNorm(spec, enabled=False),
            local_stream=True,
            threads=2,
            generator=generator(99 * ranks.rank),  # the first process's networks count
            device=CPU,
            ranks=ranks,
        )

    one = new(lengths, Ranks.single())
    rollout = collect(one, ScriptedEnv(lengths, agents_die=dies))
    rewards = random_rewards(rollout)
    assert rewards.local is not None

    def work(ranks: Ranks) -> Mappo:
        envs = slice(2 * ranks.rank, 2 * ranks.rank + 2)
        mappo = new(lengths[envs], ranks)
        mine = Rewards(team=rewards.team[:, envs], local=of_envs(rewards.local, envs))
        mappo.update(rollout_of(rollout, envs), mine, 1.0)
        return mappo

    one.update(rollout, rewards, 1.0)
    first, second = in_ranks(2, work)
    for name, net in one.networks.items():
        for key, tensor in net.state_dict().items():
            mine, theirs = (m.networks[name].state_dict()[key] for m in (first, second))
            assert torch.equal(mine, theirs), f"{name}.{key}"
            assert torch.allclose(mine, tensor, atol=2e-5), f"{name}.{key}"


def test_what_is_not_finite_stops_all_processes() -> None:
    def work(ranks: Ranks) -> str:
        x = torch.tensor([1.0, float("nan") if ranks.rank == 1 else 2.0])
        with pytest.raises(NonFiniteError) as caught:
            check_finite(ranks, advantages=x)
        return str(caught.value)

    first, second = in_ranks(2, work)
    assert first.startswith("a tensor of another process holds NaN")
    assert second.startswith("advantages holds NaN")


def test_an_error_of_one_process_is_one_of_all() -> None:
    def work(ranks: Ranks) -> type[BaseException]:
        try:
            with together(ranks):
                if ranks.rank == 1:
                    raise EnvError("mine")
        except (EnvError, PeerError) as error:
            return type(error)
        raise AssertionError

    assert in_ranks(2, work) == [PeerError, EnvError]


def test_a_rollout_and_a_batch_in_halves_come_to_what_the_whole_comes_to() -> None:
    """With agents that die unevenly, and a gradient step for which one process has nothing."""
    whole = work(Ranks.single())
    first, second = in_ranks(2, work)
    assert_agree(first, whole, 1e-6)
    for name, tensor in first.items():
        assert torch.equal(second[name], tensor), name


def test_rewards_are_fitted_as_long_as_any_process_has_a_batch() -> None:
    batch = batch_of([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [3, 3])

    def fit(ranks: Ranks, batches: list[EpisodeBatch | None]) -> float:
        model = make_model(FactoredReward)
        learner = RewardLearner(model, "", model.config, 10, threads=2, device=CPU, ranks=ranks)
        return learner.fit(Served(batches), uniform_policy)["reward/gradient_steps"]

    def work(ranks: Ranks) -> float:
        own = [batch, None, None, batch] if ranks.rank else [None, batch, None, None]
        return fit(ranks, own)

    assert in_ranks(2, work) == [2.0, 2.0]  # to the third has nobody anything


def test_the_team_s_normaliser_passes_its_ranks_on() -> None:
    env = ScriptedEnv([[3], [4]], agents_die=True)
    rollout = collect(make_mappo(env.spec), env, steps=6)
    whole = TeamNorm(env.spec, enabled=True)
    whole.update(rollout.transitions)

    def work(ranks: Ranks) -> TeamNorm:
        norm = TeamNorm(env.spec, enabled=True)
        norm.update(rollout_of(rollout, slice(ranks.rank, ranks.rank + 1)).transitions, ranks)
        return norm

    for norm in in_ranks(2, work):
        for name, tensor in whole.state_dict().items():
            assert torch.allclose(norm.state_dict()[name], tensor, rtol=1e-4), name
