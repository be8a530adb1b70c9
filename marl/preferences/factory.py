"""From settings to a labeller."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from envs import EnvSpec
from marl.config import Config, ConfigError, ModelConfig, PreferenceConfig, TeacherConfig
from marl.config.preferences import LABELLERS
from marl.preferences.labellers import (
    Cascade,
    Labeller,
    ReturnLabeller,
    called,
    facts_labeller,
)
from marl.preferences.teachers import NoisyTeacher
from marl.utils import plugins
from marl.utils.ranks import SINGLE, Ranks
from marl.utils.seeding import Seeds


def make_labeller(
    config: PreferenceConfig,
    spec: EnvSpec,
    seeds: Seeds,
    people: Labeller | None = None,
    *,
    given: Callable[..., Any] | None = None,
    run: str = "",
    ranks: Ranks = SINGLE,
) -> Labeller:
    """Return the labeller a configuration names, with its tie-break and its teacher's errors.

    `people` is the labeller of that name, which only a run with a folder has; `given` is the one
    called ``python``. `run` is the identity under which an answer cache keeps what is asked.
    """
    if config.labeller == "people":
        if people is None:
            raise ConfigError(
                'preferences.labeller: "people" answer on a page about the episodes of a run '
                "folder; train with one (run_dir), and leave people out elsewhere"
            )
        return people
    if given is None:
        labeller = _base_labeller(config, spec, seeds, run, ranks)
    else:
        labeller = _given(given, spec, seeds)
    if config.tie_break:
        rule = facts_labeller(spec, config.tie_break, setting="preferences.tie_break")
        labeller = Cascade(labeller, rule, pass_unanswered=False, pass_ties=True)
    if adds_errors(config.teacher):
        labeller = NoisyTeacher(labeller, config.teacher, seeds.integer("teacher"))
    return labeller


def with_given_labeller(config: Config, given: object | None) -> Config:
    """Return the settings with which a run whose labeller is given in Python is recorded.

    They say ``python``, so that nothing takes the run's labels for those of another labeller.
    Raises `ConfigError` where they name another one, or need no labels.
    """
    if given is None:
        return config
    if not callable(given):
        raise ConfigError(
            f"labeller: got {given!r}, expected a callable from episode pairs to labels"
        )
    if not config.learns_from_labels:
        raise ConfigError(
            f"labeller: given, but algorithm {config.algorithm!r} needs no labels; leave it out"
        )
    preferences = config.preferences
    if preferences.labeller not in (PreferenceConfig().labeller, "python"):
        raise ConfigError(
            f"preferences.labeller: got {preferences.labeller!r}, and another labeller is given in "
            "Python; leave one of them out"
        )
    return replace(config, preferences=replace(preferences, labeller="python"))


def adds_errors(config: TeacherConfig) -> bool:
    """Return whether a teacher changes any answer."""
    exact = TeacherConfig(myopia=config.myopia)  # myopia is in the returns themselves
    return config != exact


def _base_labeller(
    config: PreferenceConfig, spec: EnvSpec, seeds: Seeds, run: str, ranks: Ranks
) -> Labeller:
    """Return the labeller that ``preferences.labeller`` names."""
    if config.labeller == "llm":
        return _language_model(config, spec, seeds, run, ranks)
    if config.labeller == "python":
        raise ConfigError(
            'preferences.labeller: "python" is a callable of a Python program, which only that '
            "program can give: marl.train(config, run_dir, labeller=...), to go on with a run with "
            "resume=True"
        )
    if made_by := LABELLERS.get(config.labeller):
        shipped: Labeller = plugins.load(made_by, "preferences.labeller")(config, spec)
        return shipped
    path = config.labeller.removesuffix("()")
    loaded = plugins.load(path, "preferences.labeller")
    if isinstance(loaded, type) or path != config.labeller:
        loaded = _constructed(loaded, config.labeller, spec, seeds)
    return loaded


def _given(given: Callable[..., Any], spec: EnvSpec, seeds: Seeds) -> Labeller:
    """Return a labeller given in Python; of a class, an instance."""
    is_class = isinstance(given, type)
    return _constructed(given, given.__qualname__, spec, seeds) if is_class else given


def _language_model(
    config: PreferenceConfig, spec: EnvSpec, seeds: Seeds, run: str, ranks: Ranks
) -> Labeller:
    """Return a language model that has passed its preflight, with its fallback.

    Where several processes train, process 0 asks it.
    """
    # The client takes a second to import, which only those who use it should wait for.
    from marl.preferences.llm import LlmLabeller, SharedLlm

    fallback = None
    if config.llm.at_cap == "fallback":
        if config.llm.fallback in ("", "llm"):
            raise ConfigError(
                f"preferences.llm.fallback: got {config.llm.fallback!r}, expected another "
                'labeller, such as "return", to take over at a cap'
            )
        rule = replace(config, labeller=config.llm.fallback)
        fallback = _base_labeller(rule, spec, seeds, run, ranks)
    fallbacks = () if fallback is None else (fallback,)
    if ranks.rank:
        return SharedLlm(config.llm, spec, None, fallbacks)
    labeller = LlmLabeller(config.llm, spec, fallback, run=run)
    try:
        labeller.start()
    except BaseException:
        labeller.close()
        raise
    return labeller if ranks.size == 1 else SharedLlm(config.llm, spec, labeller, fallbacks)


def return_labeller(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return the rule by which the larger return wins."""
    return ReturnLabeller(
        margin=config.margin, sharpness=config.sharpness, discount=config.discount
    )


def outcome_labeller(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return the rule by which a won episode beats a lost one."""
    return facts_labeller(spec, ("won",), setting='preferences.labeller = "outcome"')


def listed_facts_labeller(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return the rule over the facts that the settings list."""
    return facts_labeller(spec, config.facts, config.fact_margins, setting="preferences.facts")


def model_labeller(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return the reward model of another run, frozen."""
    # Reward models are made of what this package offers, so it cannot import them at its start.
    from marl.preferences.reward_labeller import RewardLabeller
    from marl.rewards.io import load_reward

    return RewardLabeller(
        config.model, load_reward(config.model.run, spec, "preferences.model.run")
    )


def contrast_labeller(config: PreferenceConfig, spec: EnvSpec) -> Labeller:
    """Return what a weaker team has learned, frozen."""
    # As above.
    from marl.preferences.reward_labeller import RewardLabeller
    from marl.rewards.weak_ratio import load_weak_ratio

    control = ModelConfig(length_control=config.contrast.length_control)
    return RewardLabeller(control, load_weak_ratio(config.contrast, spec))


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
    made = called(name, "made", partial(factory, **arguments))
    if not callable(made):
        raise plugins.PluginError(
            f"preferences.labeller: {name} made a {type(made).__name__}, expected a labeller: a "
            "callable from pairs to labels"
        )
    return made
