"""Generators depend on the seed and their name, on nothing else, and continue exactly."""

import hashlib

import numpy as np
import pytest
import torch

from marl.utils.seeding import Seeds


def draws(generator: torch.Generator) -> list[float]:
    return torch.rand(3, generator=generator).tolist()


def test_names_and_seeds_separate_generators() -> None:
    streams = [
        tuple(draws(Seeds(seed).torch(name))) for seed in (0, 1) for name in ("policy", "queries")
    ]
    assert len(set(streams)) == 4


def test_other_generators_change_nothing() -> None:
    crowded = Seeds(5)
    crowded.numpy("a").random(10)
    draws(crowded.torch("b"))
    assert draws(crowded.torch("policy")) == draws(Seeds(5).torch("policy"))
    assert crowded.numpy("policy").random() == Seeds(5).numpy("policy").random()


def test_a_name_is_one_generator() -> None:
    seeds = Seeds(0)
    assert seeds.torch("policy") is seeds.torch("policy")
    assert seeds.numpy("policy") is seeds.numpy("policy")


def test_an_integer_is_the_documented_hash() -> None:
    digest = hashlib.sha256(b"7/integer/envs").hexdigest()
    # The first 16 hex digits are 64 bits; dropping the lowest leaves 63, a valid signed seed.
    assert Seeds(7).integer("envs") == int(digest[:16], 16) // 2 < 2**63


def test_state_continues_generators_handed_out_before_and_after_loading() -> None:
    saved = Seeds(3)
    saved.torch("policy")
    draws(saved.torch("policy"))
    saved.numpy("queries").standard_normal(3)
    state = saved.state_dict()
    expected = draws(saved.torch("policy")), saved.numpy("queries").random(3).tolist()

    resumed = Seeds(99)
    early = resumed.torch("policy")  # handed out before loading: must be changed in place
    draws(early)
    resumed.load_state_dict(state)
    assert (draws(early), resumed.numpy("queries").random(3).tolist()) == expected
    assert resumed.seed == 3


def test_a_generator_unknown_to_the_state_starts_where_the_saved_run_would_find_it() -> None:
    resumed = Seeds(99)
    torch_generator, numpy_generator = resumed.torch("late"), resumed.numpy("late")
    draws(torch_generator)
    numpy_generator.random()
    resumed.load_state_dict(Seeds(3).state_dict())
    assert draws(torch_generator) == draws(Seeds(3).torch("late"))
    np.testing.assert_equal(numpy_generator.random(), Seeds(3).numpy("late").random())


def test_one_name_cannot_live_on_two_devices() -> None:
    seeds = Seeds(0)
    seeds.torch("policy")
    with pytest.raises(ValueError, match="lives on cpu and was asked for on cuda"):
        seeds.torch("policy", "cuda")
