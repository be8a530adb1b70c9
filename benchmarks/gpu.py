"""What a GPU computes and how fast: a short check, to be run where there is one.

    python -m benchmarks.gpu                  # cuda; JaxMARL's part needs jax[cuda12]
    python -m benchmarks.gpu --device cpu     # the same code, without a GPU

1. The losses of one update and the rewards of one rollout on the device, against the CPU's.
2. The same update by two processes on that one device, each on half of the environments.
3. Steps/s of whole training loops, SMAX 3m with recurrent networks and HalfCheetah 2x3, on the CPU
   and on the device, SMAX also with its battles on the device, and of `benchmarks.jaxmarl_style`,
   which is wholly in JAX.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from typing import Any

import torch

import marl
from benchmarks import ROOT
from benchmarks.scale import started
from marl.data.types import Rewards, Rollout
from marl.utils.distributed import joined
from marl.utils.origin import commit, machine
from marl.utils.ranks import SINGLE, Ranks, mean_metrics

ONE_STEP: dict[str, Any] = {
    "algorithm": "imap",
    "env.name": "particles/nav_6",
    "env.num_envs": 16,
    "learner.rollout_steps": 25,
    "learner.epochs": 1,
    "learner.minibatches": 1,  # the order of rows, which the device draws, changes nothing then
    "preferences.replay_steps": 1600,
    "threads": 1,
}
LOSSES = ("policy/loss", "policy/grad_norm", "value/loss_team", "value/loss_local")
LOOPS: dict[str, tuple[str, dict[str, Any], str]] = {
    "smax/3m, gru": ("configs/smax_3m.toml", {"network.recurrence": "gru"}, "jaxmarl"),
    "mamujoco/halfcheetah_2x3": ("configs/halfcheetah_2x3.toml", {}, ""),
}
"""Settings, changes of them, and the package that is needed."""
AGREE = 1e-4
"""Largest relative difference; sums are of single precision and in another order."""
SMALL = 1e-3
"""What is smaller counts as this: the first policy loss is a mean of standardised advantages, 0."""


def moved(value: Any, device: str, envs: slice = slice(None)) -> Any:
    """Return a rollout with (T, E, ...) tensors of some environments, on a device."""
    if isinstance(value, torch.Tensor):
        return value[:, envs].to(device)
    if isinstance(value, dict):
        return {name: moved(inner, device, envs) for name, inner in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        fields.pop("episodes", None)  # those that ended: nothing here reads them
        return dataclasses.replace(value, **{k: moved(v, device, envs) for k, v in fields.items()})
    return value


@contextmanager
def trainer_on(device: str, ranks: Ranks = SINGLE) -> Iterator[marl.Trainer]:
    """Yield a trainer of `ONE_STEP`."""
    config = marl.load_config(overrides=ONE_STEP | {"device": device})
    with closing(marl.Trainer(config, ranks=ranks)) as trainer:
        yield trainer


def update(trainer: marl.Trainer, rollout: Rollout, ranks: Ranks = SINGLE) -> dict[str, float]:
    """Return the losses of an update by given rollouts, and the size of the learned rewards."""
    assert trainer.reward is not None
    with torch.no_grad():
        found = trainer.reward.model(rollout.transitions)
    team, local = found.team, found.local
    rewards = Rewards(team=team, local=local)
    metrics = trainer.learner.update(rollout, rewards, 1.0)
    kept = {name: metrics[name] for name in LOSSES if name in metrics}
    kept["reward/team, mean square"] = float(team.square().mean())
    if local is not None:
        kept["reward/local, mean square"] = float(local.square().mean())
    return mean_metrics(ranks, kept)


def states(trainer: marl.Trainer) -> dict[str, Any]:
    """Return the weights that two trainers must share."""
    assert trainer.reward is not None
    networks = trainer.learner.networks | {"reward": trainer.reward.model}
    return {name: network.state_dict() for name, network in networks.items()}


def losses(device: str, ranks: Ranks = SINGLE) -> tuple[dict[str, float], dict[str, float]]:
    """Return what the CPU and what the device finds; of several processes, each has its part."""
    with trainer_on("cpu") as cpu:
        rollout, _ = cpu.collector.collect(cpu.learner.actor)
        saved = states(cpu)
        with trainer_on(device, ranks) as other:
            other.learner.actor.load_state_dict(saved["actor"])
            for name, network in (other.learner.networks | {"reward": other.reward.model}).items():
                network.load_state_dict(saved[name])
            share = cpu.config.env.num_envs // ranks.size
            part = slice(ranks.rank * share, (ranks.rank + 1) * share)
            theirs = update(other, moved(rollout, device, part), ranks)
        return update(cpu, rollout), theirs


def compared(title: str, pair: tuple[dict[str, float], dict[str, float]]) -> bool:
    """Print a table of two lots of numbers; return whether they agree."""
    print(f"\n| {title} | CPU, one process | there | relative difference |")
    print("| --- | --- | --- | --- |")
    agree = True
    for name, ours in pair[0].items():
        there = pair[1][name]
        difference = abs(ours - there) / max(abs(ours), SMALL)
        agree &= difference <= AGREE
        print(f"| {name} | {ours:.6g} | {there:.6g} | {difference:.1e} |")
    return agree


def rate(config: str, changes: dict[str, Any], device: str, seconds: float) -> float:
    """Return the median steps/s of iterations, the first two left out."""
    values = {"algorithm": "imap", "device": device, "threads": 1}
    settings = marl.load_config(ROOT / config, values | changes)
    rates: list[float] = []
    until = time.perf_counter() + seconds
    with closing(marl.Trainer(settings)) as trainer:
        while len(rates) < 3 or (time.perf_counter() < until and len(rates) < 30):
            rates.append(trainer.iterate()["time/steps_per_second"])
    return statistics.median(rates[2:])


def main() -> None:
    """Print Markdown tables; exit with 1 where numbers do not agree."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=25.0, help="of each training loop")
    parser.add_argument("--part", choices=("losses",), help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = options.device
    torch.set_num_threads(1)
    if options.part:
        # "cuda:0" and not "cuda": both processes on one GPU, exchanging over gloo.
        with joined(device) as ranks:
            pair = losses(device, ranks)
            if ranks.rank == 0:
                print(json.dumps(pair))
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no GPU is here; --device cpu runs the same code without one")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    print(f"commit {commit()} on {machine()}; {name}")
    agree = compared(device, losses(device))
    part = ("--part", "losses", "--device", device)
    pair = started(2, *part, module="benchmarks.gpu")
    agree &= compared(f"{device}, two processes", (pair[0], pair[1]))
    print("\n| training loop | CPU, steps/s | device, steps/s |\n| --- | --- | --- |")
    for loop, (config, changes, needs) in LOOPS.items():
        if needs and find_spec(needs) is None:
            print(f"| {loop} | {needs} is not installed | |")
            continue
        both = [rate(config, changes, place, options.seconds) for place in ("cpu", device)]
        print(f"| {loop} | {both[0]:,.0f} | {both[1]:,.0f} |")
        if needs and device != "cpu":
            there = changes | {"env.options": {"device": device}}
            reached = rate(config, there, device, options.seconds)
            print(f"| {loop}, the environment on the device, too | | {reached:,.0f} |")
    if find_spec("jaxmarl") is not None:
        words = ["3m", "--num-envs", "256", "--width", "64"]
        script = [sys.executable, "-m", "benchmarks.jaxmarl_style", *words]
        said = subprocess.run(script, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        print(f"\nbenchmarks.jaxmarl_style {' '.join(words)}: {said.stdout.strip()}")
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
