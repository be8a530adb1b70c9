"""A trained team outside the trainer: observations in, actions out, both NumPy.

A checkpoint holds the constants of its environment, so that the environment need not be there.
Where it is made again, it must be what it was.

Axes: E environments, N agents, O observation features, A actions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from envs import EnvError, EnvSpec, VecEnv, open_env
from envs.validation import Problems, check_layout
from marl.config import Config, ConfigError
from marl.config.io import config_from_dict, plain
from marl.config.validation import build
from marl.data.rollout import executed
from marl.learners.base import Actor, learner_class
from marl.nn.encoders import input_widths
from marl.nn.normalisation import team_norm
from marl.utils.checkpoint import (
    CheckpointError,
    check_finite_weights,
    check_layer_sizes,
    load_saved,
    restoring,
)
from marl.utils.plugins import check_trusted, environment_paths, grant, learner_paths
from marl.utils.text import printable
from marl.zoo import missing

IN_DICT = (".observation",)
"""Where an observation stands that has a mask beside it; see `envs.base.SpaceLeaf.path`."""


class Policy:
    """A trained team. Its random draws come from a generator of its own.

    For one thread at a time, since its networks reuse their memory: load one for each.
    """

    def __init__(
        self,
        *,
        config: Config,
        spec: EnvSpec,
        steps: int,
        actor: Actor,
        folder: Path | str = "",
        seed: int = 0,
        trained: str = "",
        env_named_in: Path | str | None = None,
    ) -> None:
        self.config = config
        """The settings it was trained with."""
        self.spec = spec
        """The environment it was trained in; `num_envs` says nothing here."""
        self.steps = steps
        """Environment steps it was trained for; 0 where it was fitted to a dataset."""
        self.trained = trained or f"after {steps:,} steps"
        """How it was trained, in words."""
        self.actor = actor
        self.folder = folder
        """The run's, which must be trusted before code that it names is imported."""
        self._env_named_in = folder if env_named_in is None else env_named_in
        """The run, or file of settings, that names the environment which is played in."""
        self._generator = torch.Generator()
        self._contrast: tuple[Policy, float] | None = None
        """Base and strength with which it acted last; None: by itself."""
        self._contrast_actor: Actor | None = None
        self.reset(seed)

    def acting(
        self,
        actor: Actor,
        config: Config | None = None,
        spec: EnvSpec | None = None,
        env_named_in: Path | str | None = None,
    ) -> "Policy":
        """Return the policy with another actor, and in another environment if one is given.

        Then `env_named_in` is the run, or the file, whose settings `config` are.
        """
        return Policy(
            config=config or self.config,
            spec=spec or self.spec,
            steps=self.steps,
            actor=actor,
            folder=self.folder,
            trained=self.trained,
            env_named_in=self._env_named_in if env_named_in is None else env_named_in,
        )

    def open_env(self, num_envs: int) -> AbstractContextManager[VecEnv]:
        """Open the environment it was trained in; raise if that changed or is not trusted."""
        check_trusted(environment_paths(self.config), self._env_named_in, self.config)
        return reopened_env(self.config, self.spec, num_envs)

    def reset(self, seed: int | None = None) -> None:
        """Begin new episodes: reset the hidden state; with `seed`, also the random draws.

        A feed-forward team has no hidden state; a recurrent one takes successive calls of `act` for
        successive steps of the same teams.
        """
        self._hidden: torch.Tensor | None = None
        if seed is not None:
            self._generator.manual_seed(seed)

    def reset_done(self, done: npt.ArrayLike) -> None:
        """Reset the hidden state of those of the E teams whose episode has ended."""
        if self._hidden is not None:
            ended = torch.from_numpy(np.asarray(done, np.bool_))
            ended = ended.view(-1, *[1] * (self._hidden.ndim - 1))
            self._hidden = self._hidden.masked_fill(ended, 0.0)

    @torch.no_grad()
    def act(
        self,
        obs: npt.ArrayLike,
        state: npt.ArrayLike | None = None,
        mask: npt.ArrayLike | None = None,
        greedy: bool = False,
        contrast: "Policy | None" = None,
        strength: float = 1.0,
    ) -> npt.NDArray[Any]:
        """Return the actions of one team, or of each of E teams.

        `obs` is (N, O) or (E, N, O), padded with zeros beyond an agent's own features. `mask` is
        True where an action is legal, (N, A) or (E, N, A). The agents act on what each of them
        sees: `state` is taken so that one call fits all policies, and not read. Actions are
        (N,) or (E, N) integers, or (N, A) or (E, N, A) floats in [-1, 1]: the most likely ones
        if `greedy`, else drawn. With `contrast`, another policy, they are those of this policy's
        contrast to it of that `strength` (`marl.contrast`); the choice holds for whole episodes.
        """
        spec, team = self.spec, self.spec.num_agents
        kind = np.uint8 if spec.obs_image else np.float32
        seen = self._checked("obs", obs, (team, spec.obs_size), kind)
        legal = None
        if mask is not None:
            shape = (*np.shape(obs)[:-1], spec.action_size)
            legal = self._checked("mask", mask, (team, spec.action_size), np.bool_)
            if np.shape(mask) != shape:
                raise ValueError(f"mask has shape {np.shape(mask)}; expected {shape}, as obs has")
        elif spec.masks_actions:
            raise ValueError(
                f"{spec.name} has illegal actions; give mask, True where an action is legal"
            )
        actor = self._steered(contrast, strength)
        if self._hidden is None:
            self._hidden = actor.initial_hidden(len(seen))
        elif len(self._hidden) != len(seen):
            raise ValueError(
                f"obs holds {len(seen)} teams, the policy's hidden state {len(self._hidden)}; "
                "call reset() before acting for others"
            )
        noise = None if greedy else actor.noise((len(seen),), self._generator)
        actions, _, self._hidden = actor.act(seen, self._hidden, legal, noise)
        chosen: npt.NDArray[Any] = executed(spec, actions).numpy()
        return chosen if np.ndim(obs) == 3 else chosen[0]

    def _steered(self, base: "Policy | None", strength: float) -> Actor:
        """Return the actor of this policy's contrast to a base; None: its own."""
        chosen = None if base is None else (base, strength)
        if self._contrast != chosen:
            if self._hidden is not None:
                raise ValueError(
                    "contrast and strength hold for whole episodes of a recurrent team; call "
                    "reset() before acting with others"
                )
            self._contrast, self._contrast_actor = chosen, None
            if base is not None:
                # A contrast is made of policies, so it cannot be imported where these are defined.
                from marl.contrast import contrasted

                self._contrast_actor = contrasted(self, base, strength).actor
        return self._contrast_actor or self.actor

    def act_named(
        self,
        obs: Mapping[str, Any],
        agents: Sequence[str],
        greedy: bool = False,
        infos: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return an action for each agent in `obs`, by name, as PettingZoo's `step` takes them.

        `agents` are all names in the environment's order, e.g. ``env.possible_agents``; those
        missing in `obs` have died. An observation is what the agent observes in the environment
        that it was trained in, as it is there or as a vector, or a dict of ``observation`` and
        ``action_mask``; masks may stand in `infos` instead. Actions are those of the agents' own
        spaces, as they were in training: shifted, scaled and shaped.
        """
        spec = self.spec
        unknown = set(obs) - set(agents)
        if len(agents) != spec.num_agents or unknown:
            raise ValueError(
                f"{spec.name} was trained with {spec.num_agents} agents, agents names "
                f"{len(agents)} and lacks {sorted(unknown)}; give all names in the environment's "
                "order, e.g. env.possible_agents"
            )
        kind = np.uint8 if spec.obs_image else np.float32
        padded = np.zeros((spec.num_agents, spec.obs_size), kind)
        legal = np.arange(spec.action_size) < np.array(spec.action_sizes)[:, None]
        for index, agent in enumerate(agents):
            if agent not in obs:
                continue
            own, size = obs[agent], spec.obs_sizes[index]
            mask = None if infos is None else infos.get(agent, {}).get("action_mask")
            if isinstance(own, Mapping) and "action_mask" in own:
                mask = own["action_mask"]
            if mask is not None:
                legal[index, : spec.action_sizes[index]] = self._legal(index, agent, mask)
            padded[index, :size] = self._vector(index, agent, own)
        actions = self.act(padded, mask=legal, greedy=greedy)
        return {
            agent: self._own_action(index, actions[index])
            for index, agent in enumerate(agents)
            if agent in obs
        }

    def _vector(self, agent: int, name: str, obs: Any) -> Any:
        """Return an agent's observation as the vector that it was trained with."""
        spec, shape = self.spec, (self.spec.obs_sizes[agent],)
        vector: Any = obs.get("observation") if isinstance(obs, Mapping) else obs
        if not isinstance(vector, Mapping | tuple) and np.shape(vector) == shape:
            return vector
        if not spec.native_spaces:
            raise ValueError(
                f"the observation of {name} has shape {np.shape(vector)}; {spec.name} was trained "
                f"with {shape}"
            )
        native = spec.native_spaces[agent]
        if not isinstance(obs, Mapping) and all(leaf.path[:1] == IN_DICT for leaf in native.obs):
            obs = {"observation": obs}  # by itself, its mask in the infos
        try:
            return native.features(obs)
        except EnvError as error:
            raise ValueError(f"{name} {error}; {spec.name} was trained so") from None

    def _own_action(self, agent: int, action: Any) -> Any:
        """Return an agent's action, an integer or padded columns, in its own space."""
        spec = self.spec
        if spec.native_spaces or spec.action_kind == "composite":
            chosen = int(action) if spec.action_kind == "discrete" else action
            return spec.own_spaces[agent].action(chosen)
        return int(action) if spec.action_kind == "discrete" else action[: spec.action_sizes[agent]]

    def _legal(self, agent: int, name: str, mask: Any) -> npt.NDArray[np.bool_]:
        """Return which of an agent's choices are legal by a mask of its own."""
        try:
            return self.spec.own_spaces[agent].legal(mask)
        except EnvError as error:
            raise ValueError(f"{name} {error}") from None

    def _checked(
        self, name: str, given: npt.ArrayLike, shape: tuple[int, int], dtype: type[np.generic]
    ) -> torch.Tensor:
        """Return `given` as (E, *shape), E = 1 for one team."""
        array = np.asarray(given)
        if array.ndim not in (2, 3) or array.shape[-2:] != shape:
            raise ValueError(
                f"{name} has shape {array.shape}; {self.spec.name} was trained with {shape}: give "
                f"one team {shape} or E teams (E, {shape[0]}, {shape[1]})"
            )
        return torch.from_numpy(array.astype(dtype).reshape(-1, *shape))


def load(run: Path | str, seed: int = 0, *, best: bool = False, trust: bool = False) -> Policy:
    """Return the policy of a run's newest complete checkpoint; `seed` seeds its random draws.

    With `best` it is the one that played best while it trained (``eval.every``), acting greedily.
    `run` is the folder of a run, or of a policy that was fitted to a dataset, or one of its files
    ``checkpoints/step_*.ckpt``. The environment is not made, and need not be there. Code that a run
    of another user names, its environment or its learner, is imported only with `trust`.
    """
    if hint := missing(run):
        raise ConfigError(hint)
    _, saved, folder = load_saved(run, best=best)
    if trust:
        grant(folder)
    return restored(saved, folder, seed)


def restored(saved: dict[str, Any], run: Path | str, seed: int = 0) -> Policy:
    """Return the policy in a checkpoint; `run` names in errors where that was read."""
    config = config_in(saved, str(run))
    spec = spec_in(saved, str(run))
    parts = learner_in(saved)
    if parts is None and "trainer" not in saved:
        raise ConfigError(
            f"{run} holds a fitted reward model and no policy; `marl fit-reward --model dpo` (or "
            "omapl) and `marl imitate` fit policies"
        )
    for inputs in input_widths(spec, config.network.encoder):
        check_layer_sizes(run, saved, (*inputs, *config.network.hidden_sizes, spec.action_size))
    norm = team_norm(spec, config.network)
    check_trusted(learner_paths(config), run, config)
    learner = learner_class(config.learner.kind)
    with restoring(run):
        if parts is None:
            raise LookupError("there is no learner")
        actor = learner.make_actor(spec, config.network, norm, torch.Generator())
        actor.load_state_dict(parts["actor"])
        iteration = int(saved["trainer"]["iteration"]) if "trainer" in saved else 0
        steps = iteration * config.batch_steps
    check_finite_weights(run, actor.state_dict())
    trained = printable(str(saved.get("fitted", "")))[:100]
    return Policy(
        config=config, spec=spec, steps=steps, actor=actor, folder=run, seed=seed, trained=trained
    )


def learner_in(saved: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the learner's state in the checkpoint of a run or a fit; None: it has no policy."""
    trainer = saved.get("trainer", saved)
    learner = trainer.get("learner") if isinstance(trainer, dict) else None
    return learner if isinstance(learner, dict) else None


def saved_spec(spec: EnvSpec) -> dict[str, Any]:
    """Return a spec as plain values for a checkpoint; `num_envs` says nothing there and is 1."""
    values: dict[str, Any] = plain(replace(spec, num_envs=1))
    return values


def spec_in(saved: dict[str, Any], where: str) -> EnvSpec:
    """Return the spec in a checkpoint that `where` names, without making the environment."""
    spec = build(EnvSpec, section(saved, "spec", where), where, "spec.")
    problems = Problems(where)
    check_layout(spec, problems)
    if problems:
        raise CheckpointError(problems.sentences()[0])
    return spec


def config_in(saved: dict[str, Any], where: str) -> Config:
    """Return the settings in a checkpoint that `where` names."""
    return config_from_dict(section(saved, "config", where), where)


def section(saved: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    """Return a table of a checkpoint, or raise `CheckpointError`."""
    section = saved.get(name)
    if not isinstance(section, dict):
        raise CheckpointError(
            f"{where}: the checkpoint holds no {name}; it was damaged or made by another program"
        )
    return section


@contextmanager
def reopened_env(config: Config, spec: EnvSpec, num_envs: int) -> Iterator[VecEnv]:
    """Yield the environment in which a policy with this `spec` was trained, and close it.

    Raises `ConfigError` if it has changed since.
    """
    with open_env(config.env.name, num_envs, **config.env.options) as env:
        check_same_spec(spec, env.spec, "the policy was trained")
        yield env


def check_same_spec(before: EnvSpec, now: EnvSpec, what: str) -> None:
    """Raise `ConfigError` naming what has changed in an environment since `what` was the case.

    The number of environments may differ, when they pay, and the words that describe facts.
    """
    then, here = _compared(before), _compared(now)
    changed = [name for name in then if then[name] != here[name]]
    if changed:
        raise ConfigError(
            f"{now.name} has changed since {what}: "
            + ", ".join(f"{k} (was {then[k]!r}, is {here[k]!r})" for k in changed)
            + "; bring the environment as it was, in code, options and versions"
        )


def _compared(spec: EnvSpec) -> dict[str, Any]:
    ignored = ("num_envs", "paid_at_end")
    values = {f.name: getattr(spec, f.name) for f in fields(spec) if f.name not in ignored}
    return values | {"facts": [fact.name for fact in spec.facts]}
