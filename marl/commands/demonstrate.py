"""The command ``marl demonstrate``."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.commands.label import check_extra, serve_app
from marl.config import ConfigError, Option
from marl.config.validation import Range, settings

if TYPE_CHECKING:
    from envs import EnvSpec
    from marl.policy import Policy
    from marl.preferences.dataset import PreferenceDataset
    from marl.preferences.people.demonstration import Demonstrating


@settings("--")
class Demonstrate:
    """Play episodes yourself, by keyboard on a page in your browser, as demonstrations.

    The agents wait for you in every step, one after the other; with --others a trained team drives
    all but one of them.
    """

    env: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="ENV")]
    """Environment with discrete actions: a shipped name, or an import path."""
    out: Path
    """Folder of the dataset: a new one, or one of the same environment, which gets more."""
    options: Annotated[dict[str, Option], tyro.conf.arg(name="env.options")] = field(
        default_factory=dict
    )
    """Keyword arguments of the environment, as `marl train` takes them."""
    episodes: Annotated[int, Range(1, 1e6)] = 10
    """Episodes to keep."""
    agents: tuple[int, ...] = ()
    """Agents that you drive, from 0; all if not given, with --others agent 0."""
    others: Path | None = None
    """Run, fit or checkpoint that drives the other agents."""
    greedy: bool = False
    """The others take their likeliest actions instead of sampling."""
    task: str = ""
    """What the team should achieve, for the page."""
    port: Annotated[int, Range(0, 65_535)] = 0
    """Port of the page; 0: a free one."""
    seed: Annotated[int, Range(0, 2**53)] = 0
    """Seed of the episodes' starts."""
    open: bool = True
    """Open the page in a browser, rather than only print its address."""

    def run(self) -> int:
        """Serve the page until Ctrl-C."""
        from envs import open_env
        from marl.preferences.people.demonstration import Demonstrating
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        check_extra()
        with open_env(self.env, 1, **self.options) as env:
            driven = self._driven(env.spec)
            others = self._team(env.spec)
            with self._dataset(env.spec) as data:
                session = Demonstrating(
                    env,
                    data,
                    episodes=self.episodes,
                    driven=driven,
                    others=others,
                    greedy=self.greedy,
                    seed=self.seed,
                )
                serve_demonstration(session, self._title(), self.port, self.open)
        print(f"{session.kept} more demonstrations in {self.out}, which has {len(data.numbers())}")
        if session.kept:
            print(f"a policy learns from them with: marl imitate {self.out}")
        return 0

    def _title(self) -> str:
        return f"{self.env}: {self.task}" if self.task else self.env

    def _driven(self, spec: "EnvSpec") -> tuple[int, ...]:
        """Return the agents that the person drives; raise `ConfigError` where none can be."""
        from marl.preferences.people.demonstration import OTHER_KEYS

        if spec.action_kind != "discrete":
            raise ConfigError(
                f"{self.env} has {spec.action_kind} actions, and keys choose among discrete ones; "
                "write demonstrations of it from a script (marl/rewards/README.md)"
            )
        if spec.action_size > len(OTHER_KEYS):
            raise ConfigError(
                f"{self.env} has {spec.action_size} actions, more than the {len(OTHER_KEYS)} keys; "
                "write demonstrations of it from a script (marl/rewards/README.md)"
            )
        agents = self.agents or ((0,) if self.others else tuple(range(spec.num_agents)))
        if unknown := [agent for agent in agents if not 0 <= agent < spec.num_agents]:
            raise ConfigError(
                f"--agents: got {unknown[0]}, expected 0 to {spec.num_agents - 1}, of {self.env}"
            )
        if len(set(agents)) < len(agents):
            raise ConfigError(f"--agents: got {agents}, expected each agent once")
        if self.others is None and len(agents) < spec.num_agents:
            raise ConfigError(
                f"--agents: got {len(agents)} of {spec.num_agents} agents, and nobody drives the "
                "rest; name a trained team by --others, or leave --agents out to drive all in turn"
            )
        return tuple(sorted(agents))

    def _team(self, spec: "EnvSpec") -> "Policy | None":
        """Return the team that drives the other agents, if one is named."""
        if self.others is None:
            if self.greedy:
                raise ConfigError("--greedy is how --others act; name a team, or leave it out")
            return None
        from marl.policy import load
        from marl.rewards.ratio import check_comparable

        policy = load(self.others)
        check_comparable(policy, spec, "--others")
        return policy

    @contextmanager
    def _dataset(self, spec: "EnvSpec") -> Iterator["PreferenceDataset"]:
        """Yield the dataset, held against other pages."""
        from marl.policy import check_same_spec
        from marl.preferences.dataset import PreferenceDataset
        from marl.preferences.dataset.format import manifest_path
        from marl.utils.files import held, output

        with output(self.out, "choose another --out"):
            if manifest_path(self.out).exists():
                data = PreferenceDataset(self.out)
                named = data.manifest.environment
                if named.name != self.env or named.options != self.options:
                    raise ConfigError(
                        f"--out: {self.out} holds episodes of {named.name!r} with options "
                        f"{named.options}, not of {self.env!r} with {self.options}; choose another"
                    )
                check_same_spec(data.spec, spec, f"the episodes of {self.out} were played")
            else:
                data = PreferenceDataset.create(
                    self.out,
                    spec,
                    environment=self.env,
                    options=self.options,
                    origin={"demonstrations": "by keyboard", "seed": self.seed},
                )
        with held(
            self.out / ".demonstrate.lock",
            f"another page writes demonstrations into {self.out}; end it, or choose another --out",
        ):
            yield data


def serve_demonstration(session: "Demonstrating", title: str, port: int, opens: bool) -> None:
    """Serve the page, print its address once and open it."""
    from marl.preferences.people.demonstration_server import PAGE, make_app  # needs the extra

    serve_app(
        lambda token, port: make_app(session, title, token, port),
        "play at {}\nCtrl-C ends it; every episode is kept when you say so",
        port,
        opens,
        PAGE,
    )
