"""Small learners, one rollout of theirs, and what an update makes of it."""

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor

from envs import EnvSpec
from marl.config import LearnerConfig, NetworkConfig
from marl.data.rollout import Collector
from marl.data.types import Rewards, Rollout
from marl.learners.gae import Stream
from marl.learners.mappo import Mappo
from marl.nn.normalisation import TeamNorm
from marl.trainer import Trainer

CPU = torch.device("cpu")
NETWORK = NetworkConfig(hidden_sizes=(8,))
RECURRENT = NetworkConfig(hidden_sizes=(8, 8), recurrence="gru")
ONE_STEP = LearnerConfig(epochs=1, minibatches=1)
LENGTHS = [[3, 5], [4, 2, 6]]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_mappo(
    spec: EnvSpec,
    learner: LearnerConfig = ONE_STEP,
    *,
    network: NetworkConfig = NETWORK,
    kind: type[Mappo] = Mappo,
) -> Mappo:
    norm = TeamNorm(spec, enabled=False)
    return kind(
        spec,
        network,
        learner,
        norm,
        local_stream=True,
        threads=1,
        generator=generator(),
        device=CPU,
    )


def with_unit_values(mappo: Mappo) -> Mappo:
    """Return the learner, its critics having seen targets of mean 0 and deviation 1.

    Then what their networks say is the value; before the first targets it is 0.
    """
    for critic in mappo.critics.values():
        critic.value_norm.update(torch.tensor([-1.0, 1.0]))
    return mappo


def collect(mappo: Mappo, env: Any, steps: int = 12) -> Rollout:
    """Return one rollout under the learner's own actor."""
    collector = Collector(env, steps, seed=0, generator=generator(), device=CPU)
    return copy.deepcopy(collector.collect(mappo.actor)[0])


def mappo_of(trainer: Trainer) -> Mappo:
    """Return a trainer's learner."""
    assert isinstance(trainer.learner, Mappo)
    return trainer.learner


def random_rewards(rollout: Rollout) -> Rewards:
    source = generator(7)
    shape = rollout.log_probs.shape
    return Rewards(
        team=torch.randn(shape[:2], generator=source),
        local=torch.randn(shape, generator=source),
    )


def changed(rollout: Rollout, **fields: Any) -> Rollout:
    return dataclasses.replace(
        rollout, transitions=dataclasses.replace(rollout.transitions, **fields)
    )


def parameters_after(mappo: Mappo, rollout: Rollout, rewards: Rewards) -> dict[str, Tensor]:
    """Return all parameters and statistics after one update of a copy of the learner."""
    mappo = copy.deepcopy(mappo)
    mappo.generator = generator(3)
    mappo.update(rollout, rewards, 1.0)
    return {
        f"{name}.{key}": tensor
        for name, network in mappo.networks.items()
        for key, tensor in network.state_dict().items()
    }


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


def team_stream(mappo: Mappo, rollout: Rollout, rewards: Rewards) -> Stream:
    """Return the team's stream; the learner stays as it is."""
    return copy.deepcopy(mappo)._streams(rollout, rewards)["team"]


def local_stream(mappo: Mappo, rollout: Rollout, rewards: Rewards) -> Stream:
    """Return the agents' streams; the learner stays as it is."""
    assert rewards.local is not None
    return copy.deepcopy(mappo)._streams(rollout, rewards)["local"]
