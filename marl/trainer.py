"""The algorithm: `Trainer.iterate` is its box, line by line.

Axes: T time, E environments, N agents.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from envs import Fact, close_env, make_env
from marl.config import Config, ConfigError
from marl.config.io import flat, to_dict
from marl.data.rollout import Collector, executed
from marl.data.types import FinishedEpisodes, Rewards, Rollout, Transitions
from marl.learners.base import make_learner
from marl.nn.layers import correlation, masked_mean
from marl.nn.normalisation import team_norm
from marl.preferences import FeedbackPipeline
from marl.preferences.factory import with_given_labeller
from marl.preferences.people import Camera, PeopleLabeller, make_people
from marl.rewards import Ensemble, RewardLearner, make_ensemble, make_reward_learner
from marl.utils.devices import usable_device
from marl.utils.launch import share_of
from marl.utils.memory_check import check_memory, resident_mib
from marl.utils.plugins import PluginError
from marl.utils.ranks import SINGLE, PeerError, Ranks, mean_metrics, together
from marl.utils.seeding import Seeds, process_stream
from marl.warm_start import warm_start


class Trainer:
    """Everything that changes during a run, and one iteration of it."""

    def __init__(
        self,
        config: Config,
        folder: Path | None = None,
        *,
        labeller: Callable[..., Any] | None = None,
        run: str = "",
        ranks: Ranks = SINGLE,
        restored: bool = False,
    ) -> None:
        """`folder` is the run's, which a labeller that shows episodes to people needs.

        `labeller` takes the place of the one that the settings name. `run` is the run's identity,
        under which an answer cache keeps what it asks. `ranks` are the processes that train the
        run together, each with a part of the environments and random draws of its own. With
        `restored` a state is about to be loaded, so that ``config.init`` is not read.
        """
        config = with_given_labeller(config, labeller)
        check_equal(config, ranks)
        own = share_of(config, ranks.size, local_rank=ranks.local_rank, local_size=ranks.local_size)
        self.config = config
        """The settings of the run, whose numbers are those of all processes together."""
        self.share = own
        """What this process has of them."""
        self.ranks = ranks
        self.run = run
        self.seeds = Seeds(config.seed, process_stream(ranks))
        self.people: PeopleLabeller | None = None
        with together(ranks):
            self.device = usable_device(own.device)
            self.env = make_env(own.env.name, own.env.num_envs, **env_options(own))
            spec = self.env.spec
            check_memory(own, spec, processes=ranks.local_size)
            if config.asks_people and folder is not None and ranks.rank == 0:
                camera = Camera(self.env, config.preferences.people.filmed_envs)
                self.people = make_people(config, spec, camera, folder)
        self.iteration = 0
        self.seconds = 0.0
        """Wall-clock seconds of all iterations, those before a run was resumed included."""
        self.safe_to_checkpoint = True
        """Whether the state is that after a finished iteration; False from rollout to update.

        An error of the environment leaves it True, since the collector undoes its steps; so does
        one of a plug-in within `restoring`.
        """
        self.norm = team_norm(spec, config.network).to(self.device)
        with together(ranks):
            self.collector = self._new_collector()
        self.learner = make_learner(
            spec, own, self.norm, self.seeds.torch("learner", self.device), self.device, ranks
        )
        self.feedback: FeedbackPipeline | None = None
        self.reward: RewardLearner | None = None
        self.ensemble: Ensemble | None = None
        if config.learns_reward:
            self._make_reward(labeller)
        self.evaluations: dict[int, float] = {}
        """Mean greedy returns of the evaluations while training, by step (``eval.every``)."""
        self.init_notes: list[str] = []
        """What was taken from ``config.init``, and what was not, a line each."""
        if config.init and not restored:
            try:
                with together(ranks):
                    self.init_notes = warm_start(
                        config, spec, self.learner, self.reward, self.feedback
                    )
            except BaseException:
                self.close()
                raise

    def _make_reward(self, labeller: Callable[..., Any] | None) -> None:
        """Make what a learned reward takes: the pipeline of answers, the model, an ensemble."""
        with together(self.ranks):
            self.feedback = FeedbackPipeline(
                self.env.spec,
                self.config.learner.rollout_steps,
                self.share.preferences,
                self.share.fitted_reward,
                self.seeds,
                self.device,
                num_iterations=self.config.num_iterations,
                uses_labels=self.config.learns_from_labels,
                uses_returns=self.config.learns_from_returns,
                reads_history=self.config.reads_history,
                people=self.people,
                given=labeller,
                run=self.run,
                ranks=self.ranks,
            )
        self.reward = make_reward_learner(
            self.env.spec,
            self.config,
            self.norm,
            self.seeds.torch("reward"),
            self.device,
            self.ranks,
            self.learner.actor,
        )
        self.ensemble = make_ensemble(
            self.reward,
            self.env.spec,
            self.config,
            self.norm,
            self.seeds.torch("ensemble"),
            self.device,
            self.ranks,
        )

    @property
    def env_options(self) -> dict[str, Any]:
        """Keyword arguments with which the environment is made."""
        return env_options(self.share)

    def _new_collector(self) -> Collector:
        """Return a collector whose environments are reset by the run's seed."""
        return Collector(
            self.env,
            self.config.learner.rollout_steps,
            seed=self.seeds.integer("environment"),
            generator=self.seeds.torch("actions", self.device),
            device=self.device,
            hidden_rewards=self.config.sees_hidden,
            chunk_length=self.config.learner.chunk_steps,
            callback=None if self.people is None else self.people.camera,
            undoes=True,
        )

    @property
    def steps(self) -> int:
        """Environment steps taken, summed over environments."""
        return self.iteration * self.config.batch_steps

    @property
    def is_on_plateau(self) -> bool:
        """Whether the run ends before its last step, since it no longer gets better."""
        return self.config.eval.is_plateau(self.evaluations, self.config.batch_steps)

    @property
    def is_waiting(self) -> bool:
        """Whether training pauses until people have answered."""
        waits = self.people is not None and self.config.preferences.people.wait
        return waits and self.people is not None and self.people.num_open() > 0

    def iterate(self) -> dict[str, float]:
        """Run one iteration of the algorithm (IMAP, arXiv 2509.21828) and return its metrics.

        With tau a finished episode, S its score and y = P(tau_1 preferred):

        1. collect   T steps of E environments under the current policy
        2. store     the episodes for replay; query pairs, label them y     `FeedbackPipeline`
        3. fit       L_q = BCE(S(tau_1) - S(tau_2), y) + lambda mean(R^2),  L_v    `RewardLearner`
        4. reward    R = Q_tot(s, a) - gamma_R V_tot(s'),  r_i        `FactoredReward.rewards`
        5. improve   A_i <- omega norm(A_i) + (1 - omega) norm(A), PPO        `Mappo.update`
        """
        clock = Clock()
        rollout, hidden_rewards = self._collect()  # 1
        self.safe_to_checkpoint = False
        clock.lap("collect")
        rewards: Rewards | None
        metrics: dict[str, float] = {}
        if self.feedback is None or self.reward is None:
            rewards = self._given_rewards(rollout, hidden_rewards)
        else:
            scorer = None if self.ensemble is None else self.ensemble.scores
            self.feedback.observe(rollout, hidden_rewards, scorer)  # 2
            metrics = self.reward.fit(self.feedback, self.policy) | self.feedback.metrics()  # 3
            if self.ensemble is not None:
                self.ensemble.fit(self.feedback, self.policy)
            rewards, reward_metrics = self.reward.rollout_rewards(  # 4
                rollout.transitions,
                rollout.done,
                informed=self.ranks.any(self.feedback.is_informative),
                episodes=rollout.episodes,
                known_returns=self.feedback.known_returns,
            )
            metrics |= reward_metrics
        clock.lap("reward")
        if rewards is None:
            self.learner.advance(rollout)
        else:
            remaining = 1.0 - self.iteration / self.config.num_iterations
            metrics |= self.learner.update(rollout, rewards, remaining)  # 5
        self.norm.update(rollout.transitions, self.ranks)
        clock.lap("policy")

        self.iteration += 1
        surprise = masked_mean(-rollout.log_probs, rollout.transitions.alive)
        metrics["policy/entropy"] = float(surprise)  # of the actions drawn, in nats
        if self.config.diagnose_hidden and hidden_rewards is not None and rewards is not None:
            similarity = correlation(rewards.team, hidden_rewards)
            metrics["benchmark/reward_correlation"] = float(similarity)
        metrics |= self._time_metrics(clock.laps)
        self.seconds += sum(clock.laps.values())
        metrics = {
            "steps": float(self.steps),
            "time/total": self.seconds,
            **episode_metrics(rollout, self.env.spec.facts, self.ranks),
            **mean_metrics(self.ranks, metrics),
        }
        self.safe_to_checkpoint = True
        return metrics

    def _collect(self) -> tuple[Rollout, Tensor | None]:
        """Return a rollout; an error in one process is one in all, of which none has moved on."""
        try:
            with together(self.ranks):
                return self.collector.collect(self.learner.actor)
        except PeerError:
            self.collector.undo()
            raise

    def _given_rewards(self, rollout: Rollout, hidden_rewards: Tensor | None) -> Rewards:
        """Return what the policy maximises where no reward is learned.

        The hidden reward reaches the oracle, a myopic teacher and nothing else.
        """
        if self.config.reward_choice.source == "hidden" and hidden_rewards is not None:
            return Rewards(team=hidden_rewards)
        return Rewards(team=rollout.task_rewards)

    @torch.no_grad()
    def policy(self, transitions: Transitions) -> tuple[Tensor, Tensor]:
        """Return actions of the current policy at some transitions, as an environment receives
        them, and the log-probabilities of what was drawn."""
        actor, mask = self.learner.actor, transitions.action_mask
        noise = actor.noise(transitions.terminated.shape, self.seeds.torch("soft", self.device))
        actions, log_probs, _ = actor.act(transitions.obs, None, mask, noise)
        return executed(self.env.spec, actions), log_probs

    def _time_metrics(self, laps: dict[str, float]) -> dict[str, float]:
        """Return the seconds this iteration spent in each part, and the memory it holds."""
        collecting = self.collector.take_seconds()
        return {
            "time/physics": collecting["physics"],
            "time/inference": collecting["inference"],
            "time/reward": laps["reward"],
            "time/policy": laps["policy"],
            "time/steps_per_second": self.config.batch_steps / sum(laps.values()),
            "memory/resident_mib": resident_mib() * self.ranks.size,  # the mean is then the sum
        }

    def close(self) -> None:
        """Release what the environment holds, its workers for one."""
        close_env(self.env)

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """Around `iterate`: a plug-in that fails leaves the state after the last iteration.

        A plug-in is a labeller or a reward model of the user's, and a language model at a cap that
        ends the run. What an iteration changes is copied before it; the rollout and the replay
        buffer are undone.
        """
        if self.feedback is None or not self.config.calls_plugins:
            yield
            return
        iteration, answers = self.iteration, self.feedback.snapshot()
        before = {name: copy.deepcopy(part.state_dict()) for name, part in self._parts().items()}
        try:
            yield
        except (PluginError, ConfigError, PeerError):
            if not self.safe_to_checkpoint:
                self.collector.undo()
                self.feedback.restore(answers)
                for name, part in self._parts().items():
                    part.load_state_dict(before[name])
                self.iteration = iteration
                self.safe_to_checkpoint = True
            raise

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to continue exactly."""
        state = self.playing_state() | {"collector": self.collector.state_dict()}
        state["evaluations"] = [list(self.evaluations), list(self.evaluations.values())]
        if self.feedback is not None:
            state["feedback"] = self.feedback.state_dict()
        return state

    def playing_state(self) -> dict[str, Any]:
        """Return the part of the state that plays and is shown, without episodes and buffers."""
        state: dict[str, Any] = {"iteration": self.iteration}
        if self.feedback is not None:
            state["feedback"] = {"is_informative": self.feedback.is_informative}
        return state | {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` of a trainer with the same configuration."""
        self.iteration = state["iteration"]
        steps, returns = state["evaluations"]
        self.evaluations = dict(zip(map(int, steps), map(float, returns), strict=True))
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.collector.load_state_dict(state["collector"])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])

    def load_resharded(self, state: dict[str, Any]) -> None:
        """Continue from a state of `preferences.resharding`, with new environments and draws."""
        self.iteration = state["iteration"]
        steps, returns = state["evaluations"]
        self.evaluations = dict(zip(map(int, steps), map(float, returns), strict=True))
        self.seeds.restart(f"{process_stream(self.ranks)} of {self.ranks.size} from {self.steps}")
        with together(self.ranks):
            self.collector = self._new_collector()
        for name, part in self._parts().items():
            if name == "learner" and "hidden" in state[name]:
                part.load_state_dict(state[name] | {"hidden": part.state_dict()["hidden"]})
            elif name != "seeds":
                part.load_state_dict(state[name])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])

    def _parts(self) -> dict[str, Any]:
        """Return what has a small state, by its name in a checkpoint."""
        parts = {
            "seeds": self.seeds,
            "norm": self.norm,
            "learner": self.learner,
            "reward": self.reward,
            "ensemble": self.ensemble,
        }
        return {name: part for name, part in parts.items() if part is not None}


class Clock:
    """Seconds between laps."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Book the time since the last lap under a name."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now


def env_options(config: Config) -> dict[str, Any]:
    """Return the environment's keyword arguments, with the run's threads where it takes them."""
    options: dict[str, Any] = dict(config.env.options)
    if config.env.name.startswith(("mamujoco/", "fleet/")):
        options.setdefault("num_threads", config.threads)
    return options


def check_equal(config: Config, ranks: Ranks) -> None:
    """Raise `ConfigError` naming the settings in which the processes of a run differ."""
    if ranks.size == 1:
        return
    first, *others = (flat(part) for part in ranks.gather(to_dict(config)))
    for rank, other in enumerate(others, start=1):
        differing = sorted(k for k in first | other if first.get(k) != other.get(k))
        if differing:
            raise ConfigError(
                "the processes of this run have different settings, those of process 0 and of "
                f"process {rank} in "
                + ", ".join(f"{k} ({first.get(k)!r} and {other.get(k)!r})" for k in differing)
                + "; start all of them by the same command"
            )


def episode_metrics(
    rollout: Rollout, facts: tuple[Fact, ...], ranks: Ranks = SINGLE
) -> dict[str, float]:
    """Return the mean return, length and facts of the episodes that ended; NaN if none did."""
    episodes = rollout.episodes
    if ranks.size > 1:
        return _episode_metrics_of_all(episodes, facts, ranks)
    metrics = {
        "return/mean": float(episodes.returns.mean()),
        "return/episodes": float(len(episodes.returns)),
        "return/length": float(episodes.lengths.to(torch.float32).mean()),
    }
    if episodes.facts is not None:
        names = [f"episode/{fact.name}" for fact in facts]
        metrics |= dict(zip(names, episodes.facts.mean(dim=0).tolist(), strict=True))
    return metrics


def _episode_metrics_of_all(
    episodes: FinishedEpisodes, facts: tuple[Fact, ...], ranks: Ranks
) -> dict[str, float]:
    """Return the means over all processes' episodes."""
    columns = [episodes.returns, episodes.lengths]
    if episodes.facts is not None:
        columns += episodes.facts.unbind(dim=1)
    rows = torch.stack([column.to("cpu", torch.float64) for column in columns], dim=1)
    sums = ranks.sum_(
        torch.cat((torch.tensor([float(len(rows))]).double(), rows.sum(0))), "episodes"
    )
    means = (sums[1:] / sums[0]).tolist()  # 0 / 0 is NaN
    return {
        "return/mean": means[0],
        "return/episodes": float(sums[0]),
        "return/length": means[1],
        **{f"episode/{fact.name}": mean for fact, mean in zip(facts, means[2:], strict=True)},
    }
