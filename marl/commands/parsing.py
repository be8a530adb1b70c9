"""The command line as a command: flags to values, and what was meant by those that do not exist.

tyro reads the flags from the commands' dataclasses. The rules here add what it does not do: whole
numbers as ``1e6``, choices whose errors are told by `marl.config`, options of environments as
``KEY VALUE`` pairs, and the nearest flag for one that is unknown.
"""

import ast
import dataclasses
import inspect
import operator
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import reduce
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Protocol

import tyro
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from marl.commands.dataset import Export, FitReward, Imitate
from marl.commands.demonstrate import Demonstrate
from marl.commands.envs import Check, Envs
from marl.commands.export_policy import ExportPolicy
from marl.commands.inspection import Evaluate, Labels, Watch
from marl.commands.label import Label
from marl.commands.new import New
from marl.commands.runs import Compare, Runs
from marl.commands.sample import Sample
from marl.commands.sweep import Sweep
from marl.commands.train import Resume, Train
from marl.commands.zoo import Zoo
from marl.config import ConfigError, Option
from marl.config.io import load_config
from marl.utils.plugins import check_trusted, endpoint_settings, import_paths


class Command(Protocol):
    """What was asked for, with its options."""

    def run(self) -> int:
        """Do it and return the exit status."""
        ...


GROUPS: dict[str, dict[str, type[Command]]] = {
    "to begin": {"envs": Envs, "new": New, "check": Check, "zoo": Zoo},
    "training": {"train": Train, "resume": Resume, "sweep": Sweep},
    "what came of it": {"runs": Runs, "compare": Compare, "evaluate": Evaluate, "watch": Watch},
    "people and labels": {"label": Label, "demonstrate": Demonstrate, "labels": Labels},
    "datasets": {
        "export": Export,
        "sample": Sample,
        "fit-reward": FitReward,
        "imitate": Imitate,
    },
    "elsewhere": {"export-policy": ExportPolicy},
}
"""The commands as the overview lists them."""
COMMANDS = {name: kind for group in GROUPS.values() for name, kind in group.items()}

OTHER_WORDS = {
    "algo": "algorithm",
    "batch-size": "minibatches",
    "clip-range": "clip-coef",
    "cuda": "device",
    "ent-coef": "entropy-coef",
    "env": "env.name",
    "env-id": "env.name",
    "env-name": "env.name",
    "environment": "env.name",
    "gpu": "device",
    "log-dir": "run-dir",
    "n-envs": "num-envs",
    "n-steps": "rollout-steps",
    "n-epochs": "epochs",
    "num-env-steps": "total-steps",
    "num-minibatches": "minibatches",
    "num-steps": "rollout-steps",
    "output-dir": "run-dir",
    "ppo-epochs": "epochs",
    "save-dir": "run-dir",
    "steps": "total-steps",
    "timesteps": "total-steps",
    "total-timesteps": "total-steps",
}
"""Names that other libraries have for our settings, each by its last word or by its whole flag."""


def parse(arguments: Sequence[str]) -> Command:
    """Return the command that the arguments ask for, the first of which names one of `COMMANDS`.

    Raises `ConfigError` for flags that do not exist and values that are wrong. Where tyro itself
    finds a fault, or help is asked for, it prints and exits.
    """
    path = _config_file(arguments) if arguments[0] == "train" else None
    train = Train(config=path, settings=load_config(path))
    kinds: list[Any] = [
        Annotated[
            kind,
            tyro.conf.subcommand(name, default=train)
            if kind is Train
            else tyro.conf.subcommand(name),
        ]
        for name, kind in COMMANDS.items()
    ]
    if {"-h", "--help"} & set(arguments) and arguments[0] in COMMANDS:
        _explain_options(COMMANDS[arguments[0]])
    command, unknown = tyro.cli(
        reduce(operator.or_, kinds),
        prog="marl",
        args=arguments,
        registry=RULES,
        return_unknown_args=True,
    )
    if unknown:
        raise ConfigError(_unknown(unknown, arguments[0]))
    if isinstance(command, Train):
        command = _with_options_of_file(command, train.settings.env.options)
        if path is not None and not command.trust:
            _check_trust_in(path, command, arguments)
    made: Command = command
    return made


def _explain_options(kind: type) -> None:
    """Give tyro the docstring of every option as one paragraph.

    Read from the source by tyro itself, it would keep the line breaks that it has there.
    """
    definition, texts = ast.parse(inspect.getsource(kind)).body[0], {}
    assert isinstance(definition, ast.ClassDef)
    for statements in pairwise(definition.body):
        match statements:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = " ".join(text.replace("``", "`").split())
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hint := hints[field.name]):
            _explain_options(typing.cast(type, hint))
        elif field.name in texts:
            field.metadata = MappingProxyType({**field.metadata, "help": texts[field.name]})


def _config_file(arguments: Sequence[str]) -> Path | None:
    """Return the file that ``--config`` names, whose settings are the defaults of the flags."""
    paths = [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    paths += [value for word, value in pairwise(arguments) if word == "--config"]
    if len(paths) > 1:
        raise ConfigError(
            f"--config: got {' and '.join(paths)}, expected one file; put both into one, or give "
            "the rest as flags"
        )
    return Path(paths[0]) if paths else None


def _with_options_of_file(command: Train, options: Mapping[str, Option]) -> Train:
    """Return the command with the environment options of its file where no flag changes them."""
    env = command.settings.env
    merged = dataclasses.replace(env, options=dict(options) | env.options)
    return dataclasses.replace(command, settings=dataclasses.replace(command.settings, env=merged))


def _check_trust_in(path: Path, command: Train, arguments: Sequence[str]) -> None:
    """Raise `ConfigError` unless the code and the language model that a file of settings names are
    trusted.

    What is named on the command line, too, is the user's.
    """
    given = {part for word in arguments for part in (word, word.partition("=")[2])}

    def of_file(named: Mapping[str, str]) -> dict[str, str]:
        return {name: value for name, value in named.items() if value not in given}

    settings = command.settings
    endpoint = of_file(endpoint_settings(settings.preferences))
    check_trusted(of_file(import_paths(settings)), path, endpoint=endpoint)


def _unknown(words: Sequence[str], name: str) -> str:
    """Return what to say about words that no option takes."""
    lines = []
    for word in words:
        flag = word.partition("=")[0]
        if not flag.startswith("-"):
            continue
        near = near_flags(flag, COMMANDS[name])
        meant = f"; did you mean {' or '.join(near)}?" if near else ""
        lines.append(f"marl {name} has no option {flag}{meant}")
    if not lines:
        lines = [f"marl {name}: {words[0]!r} is one argument too many"]
    return "\n".join([*lines, f"`marl {name} --help` lists the options"])


def near_flags(flag: str, kind: type) -> list[str]:
    """Return up to three flags of a command that may have been meant.

    Meant may be, in this order: the same name in another section (also one that other libraries
    use), a longer name that begins so, a name of these initials (``lr``), or one spelt nearly so.
    """
    flags = list(_flags(kind))
    section, _, name = flag.replace("_", "-").removeprefix("--").rpartition(".")
    name = name.removeprefix("no-")
    name = OTHER_WORDS.get(name, name)
    if f"--{name}" in flags:
        return [f"--{name}"]
    spelt = get_close_matches(name, [_last(one) for one in flags], n=1)
    rules: list[Callable[[str], bool]] = [
        lambda last: last == name,
        lambda last: last.startswith(f"{name}-"),
        lambda last: "".join(word[0] for word in last.split("-")) == name,
        lambda last: last in spelt,
    ]
    for is_meant in rules:
        found = [one for one in flags if is_meant(_last(one))]
        within = [one for one in found if one.startswith(f"--{section}.")]
        if found:
            return (within or found)[:3]
    return []


def _last(flag: str) -> str:
    """Return a flag's name within its section."""
    return flag.removeprefix("--").rpartition(".")[2]


def _flags(kind: type, prefix: str = "--") -> Iterator[str]:
    """Yield the flags of a command's options, in their order."""
    positional = tyro.conf.Positional[int].__metadata__[0]  # type: ignore[attr-defined]
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        metadata = getattr(hint, "__metadata__", ())
        bare = typing.get_args(hint)[0] if metadata else hint
        if positional in metadata:
            continue
        if dataclasses.is_dataclass(bare):
            within = prefix if name == "settings" else f"{prefix}{name}."
            yield from _flags(typing.cast(type, bare), within)
        else:
            named = [m.name for m in metadata if getattr(m, "name", None)]
            yield f"{prefix}{(named or [name])[0].replace('_', '-')}"


RULES = ConstructorRegistry()
"""How values are read that tyro reads otherwise."""


@RULES.primitive_rule
def _whole_number(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda words: _whole(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


@RULES.primitive_rule
def _choice(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[str] | None:
    if typing.get_origin(info.type) is not Literal:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(typing.get_args(info.type)) + "}",
        instance_from_str=lambda words: words[0],  # the settings say what is wrong with it
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    )


@RULES.primitive_rule
def _options(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[dict[str, Option]] | None:
    if typing.get_origin(info.type) is not dict:
        return None
    return PrimitiveConstructorSpec(
        nargs="*",
        metavar="KEY VALUE ...",
        instance_from_str=_pairs,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [str(one) for pair in value.items() for one in pair],
    )


def _whole(word: str) -> int:
    """Return a whole number, also one written as ``1e6``."""
    try:
        return int(word)
    except ValueError:
        pass
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not value.is_integer():
        raise ValueError(f"got {word!r}, expected a whole number such as 64 or 1e6")
    return int(value)


def _pairs(words: list[str]) -> dict[str, Option]:
    """Return environment options: truth values, numbers, or else words."""
    if len(words) % 2:
        raise ValueError(f"got {' '.join(words)!r}, expected a value after every key")
    return {key: _option(value) for key, value in zip(words[::2], words[1::2], strict=True)}


def _option(word: str) -> Option:
    """Return the truth value, the number, or the word that is meant."""
    if word.lower() in ("true", "false"):
        return word.lower() == "true"
    for read in (_whole, float):
        try:
            return read(word)
        except ValueError:
            continue
    return word
