"""From settings to a labeller."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from envs import EnvSpec
from marl.config import ConfigError, PreferenceConfig, TeacherConfig
from marl.preferences.labellers import Cascade, Labeller, ReturnLabeller, facts_labeller
from marl.preferences.teachers import NoisyTeacher
from marl.utils import plugins
from marl.utils.seeding import Seeds


def make_labeller(
    config: PreferenceConfig,
    spec: EnvSpec,
    seeds: Seeds,
    people: Labeller | None = None,
    *,
    run: str = "",
) -> Labeller:
    """Return the labeller a configuration names, with its tie-break and its teacher's errors.

    `people` is the labeller of that name, which only a run with a folder has. `run` is the
    identity under which an answer cache keeps what is asked.
    """
    if config.labeller == "people":
        if people is None:
            raise ConfigError(
                'preferences.labeller: "people" answer on a page about the episodes of a run '
                "folder; train with one (run_dir), and leave people out elsewhere"
            )
        return people
    labeller = _base_labeller(config, spec, seeds, run)
    if config.tie_break:
        rule = facts_labeller(spec, config.tie_break, setting="preferences.tie_break")
        labeller = Cascade(labeller, rule, pass_unanswered=False, pass_ties=True)
    if adds_errors(config.teacher):
        labeller = NoisyTeacher(labeller, config.teacher, seeds.integer("teacher"))
    return labeller


def adds_errors(config: TeacherConfig) -> bool:
    """Return whether a teacher changes any answer."""
    exact = TeacherConfig(myopia=config.myopia)  # myopia is in the returns themselves
    return config != exact


def _base_labeller(config: PreferenceConfig, spec: EnvSpec, seeds: Seeds, run: str) -> Labeller:
    """Return the labeller that ``preferences.labeller`` names."""
    if config.labeller == "return":
        return ReturnLabeller(
            margin=config.margin, sharpness=config.sharpness, discount=config.discount
        )
    if config.labeller == "outcome":
        return facts_labeller(spec, ("won",), setting='preferences.labeller = "outcome"')
    if config.labeller == "facts":
        names, margins = config.facts, config.fact_margins
        return facts_labeller(spec, names, margins, setting="preferences.facts")
    if config.labeller == "llm":
        return _language_model(config, spec, seeds, run)
    if config.labeller == "model":
        return _reward_model(config, spec)
    path = config.labeller.removesuffix("()")
    loaded = plugins.load(path, "preferences.labeller")
    if isinstance(loaded, type) or path != config.labeller:
        loaded = _constructed(loaded, config.labeller, spec, seeds)
    return loaded


def _language_model(config: PreferenceConfig, spec: EnvSpec, seeds: Seeds, run: str) -> Labeller:
    """Return a language model that has passed its preflight, with its fallback."""
    # The client takes a second to import, which only those who use it should wait for.
    from marl.preferences.llm import LlmLabeller

    fallback = None
    if config.llm.at_cap == "fallback":
        if config.llm.fallback in ("", "llm"):
            raise ConfigError(
                f"preferences.llm.fallback: got {config.llm.fallback!r}, expected another "
                'labeller, such as "return", to take over at a cap'
            )
        fallback = _base_labeller(replace(config, labeller=config.llm.fallback), spec, seeds, run)
    labeller = LlmLabeller(config.llm, spec, fallback, run=run)
    try:
        labeller.start()
    except BaseException:
        labeller.close()
        raise
    return labeller


def _reward_model(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return the reward model of another run, frozen."""
    # Reward models are made of what this package offers, so it cannot import them at its start.
    from marl.preferences.reward_labeller import RewardLabeller
    from marl.rewards.io import load_reward

    return RewardLabeller(
        config.model, load_reward(config.model.run, spec, "preferences.model.run")
    )


def _constructed(
    factory: Callable[..., Any], name: str, spec: EnvSpec, seeds: Seeds
) -> Callable[..., Any]:
    """Return what a class or a factory makes, given the `spec` and `generator` it asks for."""
    wanted = inspect.signature(factory).parameters
    arguments: dict[str, Any] = {}
    if "spec" in wanted:
        arguments["spec"] = spec
    if "generator" in wanted:
        arguments["generator"] = seeds.torch("labeller")
    made = factory(**arguments)
    if not callable(made):
        raise plugins.PluginError(
            f"preferences.labeller: {name} made a {type(made).__name__}, expected a labeller: a "
            "callable from pairs to labels"
        )
    return made
