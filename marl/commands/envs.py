"""The command ``marl envs``."""

from rich.text import Text

from marl.config.validation import settings


@settings("--")
class Envs:
    """List what there is to train in, and what can be installed with which extra."""

    def run(self) -> int:
        """Print the list."""
        from envs.registry import FAMILIES
        from marl.utils.terminal import LiteralConsole

        console = LiteralConsole()
        missing = {prefix: family for prefix, family in FAMILIES.items() if not family.is_installed}
        for prefix, family in FAMILIES.items():
            if prefix not in missing:
                console.print(Text(prefix, "bold") + Text(f": {family.summary}"), soft_wrap=True)
                for member in family.members():
                    console.print(f"  {prefix}/{member}" if member else f"  {prefix}")
        for prefix, family in missing.items():
            console.print(Text(prefix, "bold") + Text(f": {family.summary}"), soft_wrap=True)
            console.print(f"  not installed: {family.how_to_install}", soft_wrap=True)
        console.print(Text("your own", "bold") + Text(": --env.name my_envs:two_keys"))
        console.print(
            "  any import path; `marl check my_envs:two_keys` says what is wrong with it\n"
            "  or a PettingZoo ParallelEnv, e.g. mpe2.simple_spread_v3:parallel_env (extra mpe2)",
            soft_wrap=True,
        )
        return 0
