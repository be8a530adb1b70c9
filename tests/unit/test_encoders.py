"""Networks of the user's before the layers: where they are, and what is said of wrong ones."""

from contextlib import closing
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import marl
from marl.config import ConfigError, NetworkConfig
from marl.learners.actors import make_actor
from marl.learners.critics import AgentCritics, with_time
from marl.nn.encoders import make_encoder
from marl.nn.normalisation import TeamNorm
from marl.utils.plugins import PluginError
from tests.reward_models import N, O, generator, make_spec
from tests.small_runs import small

HERE = "tests.unit.test_encoders"


class Squares(nn.Module):
    """Squares of the observations and one number more, by a weight."""

    def __init__(self, spec: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.obs_size, 1)

    def forward(self, obs: Tensor) -> Tensor:
        return torch.cat((obs**2, self.layer(obs)), dim=-1)


class Wrong(Squares):
    def forward(self, obs: Tensor) -> Any:
        return self.answer(obs)

    answer: Any = None


def no_module(spec: Any) -> Any:
    return SimpleNamespace()


def broken(spec: Any) -> Any:
    raise ZeroDivisionError("no weights today")


def encoder(path: str, **options: Any) -> Any:
    settings: dict[str, Any] = {"shared": True, "generator": generator()} | options
    return make_encoder(make_spec(), f"{HERE}:{path}", "network.encoder", **settings)


def test_an_encoder_is_one_for_all_agents_or_one_each() -> None:
    obs = torch.randn(5, N, O)
    for shared, count in ((True, 1), (False, N)):
        made = encoder("Squares", shared=shared)
        assert (len(made.encoders), made.features) == (count, O + 1)
        out = made(obs)
        assert torch.equal(out[..., :O], obs**2)
        for agent in range(N):
            own = made.encoders[agent % count](obs[:, agent])
            torch.testing.assert_close(out[:, agent], own)
            torch.testing.assert_close(made.of_agent(obs[:, agent], agent)[0], own)
    weights = [e.layer.weight for e in encoder("Squares", shared=False).encoders]
    assert not torch.equal(weights[0], weights[1])
    again = [e.layer.weight for e in encoder("Squares", shared=False).encoders]
    assert torch.equal(weights[1], again[1])


@pytest.mark.parametrize("recurrence", ["none", "gru"])
def test_actors_and_critics_read_through_it(recurrence: Any) -> None:
    config = NetworkConfig(encoder=f"{HERE}:Squares", hidden_sizes=(8, 8), recurrence=recurrence)
    spec = replace(make_spec(), num_envs=2)
    norm = TeamNorm(spec, enabled=False)
    actor = make_actor(spec, config, norm, generator())
    critic = AgentCritics(spec, config, generator())
    obs = torch.randn(2, N, O)
    state = with_time(torch.randn(2, spec.state_size), torch.arange(2), spec.max_steps)
    outputs, _ = actor._step(obs, actor.initial_hidden(2))
    with torch.no_grad():  # the weight off, a sign makes no difference to squares
        for network in (actor, critic):
            network.encoder.encoders[0].layer.weight.zero_()  # type: ignore[union-attr]
    mirrored = [actor._step(sign * obs, actor.initial_hidden(2))[0] for sign in (1, -1)]
    assert torch.equal(*mirrored)
    assert not torch.equal(mirrored[0], outputs)
    if recurrence == "none":
        assert torch.equal(critic(obs, state), critic(-obs, state))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda obs: obs[0], "made float32 of shape (4,) of observations of shape (2, 4)"),
        (lambda obs: obs[:1], "made float32 of shape (1, 4)"),
        (lambda obs: obs.long(), "made int64 of shape (2, 4)"),
        (lambda obs: (obs, obs), "made a tuple of observations"),
        (lambda obs: obs @ torch.zeros(7, 2), "raised RuntimeError"),
    ],
)
def test_a_wrong_answer_is_one_line(
    answer: Any, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Wrong, "answer", staticmethod(answer))
    with pytest.raises(PluginError) as caught:
        encoder("Wrong")
    message = str(caught.value)
    assert f"network.encoder: {HERE}:Wrong" in message
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        ("no_module", PluginError, "made a SimpleNamespace, expected a torch.nn.Module"),
        ("broken", PluginError, "raised ZeroDivisionError: no weights today"),
        ("absent", ConfigError, "has no 'absent'"),
    ],
)
def test_what_is_no_encoder_is_one_line(path: str, error: Any, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        encoder(path)
    assert "\n" not in str(caught.value)


def test_a_name_that_there_is_not_is_told() -> None:
    config = small(**{"network.encoder": "entitys", "algorithm": "sparse"})
    with pytest.raises(ConfigError, match=r"network\.encoder: got 'entitys', expected"):
        list(marl.train(config))


@pytest.mark.parametrize("kind", ["mappo", "ippo", "happo"])
def test_training_moves_every_encoder(kind: str) -> None:
    path = f"{HERE}:Squares"
    settings = {"network.encoder": path, "reward.encoder": path, "learner.kind": kind}
    config = small(**settings, total_steps=240)
    with closing(marl.Trainer(config)) as trainer:
        learner: Any = trainer.learner
        model: Any = trainer.reward.model
        moved = [*learner.networks.values(), model.q, model.v]
        encoders = [net.encoder for net in moved if getattr(net, "encoder", None) is not None]
        assert len(encoders) >= 4
        before = [e.encoders[0].layer.weight.clone() for e in encoders]
        for _ in range(3):
            trainer.iterate()
        after = [e.encoders[0].layer.weight for e in encoders]
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))
