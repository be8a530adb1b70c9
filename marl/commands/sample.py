"""The command ``marl sample``."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from marl.commands.steering import check_options, steering
from marl.config import ConfigError
from marl.config.io import load_config, load_run_config
from marl.config.validation import Range, settings

if TYPE_CHECKING:
    from marl.policy import Policy


@settings("--")
class Sample:
    """Play episodes with a trained team and write them as a dataset.

    They are demonstrations. With --rejected another team plays, too, and the dataset prefers the
    first one's episodes. The team may be steered, as in `marl evaluate`, and may play for a team of
    another size, each of whose agents sees and does as much.
    """

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(name="run", metavar="RUN")]
    """Run, fit or checkpoint of the team."""
    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The dataset; a new folder."""
    episodes: Annotated[int, Range(1, 1e6)] = 64
    """Whole episodes of each team."""
    rejected: Path | None = None
    """Run, fit or checkpoint of the team whose episodes are not preferred; its environment is
    played in."""
    config: Path | None = None
    """TOML file of settings whose environment is played in, instead of the team's own."""
    contrast: str = ""
    """Another policy, or "uniform": the team's contrast to it plays, as in `marl evaluate`."""
    guide: Path | None = None
    """Run or fit of a factored reward that guides the team, as in `marl evaluate`."""
    strength: float | None = None
    """Of the contrast or the guidance; 1 if not given."""
    greedy: bool = False
    """Take the likeliest actions instead of sampling."""
    num_envs: Annotated[int, Range(1, 1e6)] = 16
    """Environments in a batch."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of the episodes."""

    trust: bool = False
    """Import the code that the runs name, though they are not ones that you trained on this
    machine."""

    def run(self) -> int:
        """Write the dataset and say what is in it."""
        is_steered = check_options(self.contrast, self.guide, self.strength)
        if self.rejected is not None and self.config is not None:
            raise ConfigError(
                "--rejected, --config: got both; the environment is that of the rejected team"
            )
        if self.run_dir.suffix != ".ckpt" and not (self.run_dir / "checkpoints").is_dir():
            load_run_config(self.run_dir)  # which says what is wrong with the folder
        from marl.policy import load
        from marl.preferences.dataset.sampling import sample_episodes
        from marl.utils.devices import single_threaded_operations

        single_threaded_operations()
        policy, name = load(self.run_dir), str(self.run_dir)
        if is_steered:
            steer, steered = steering(policy, self.contrast, self.guide)
            strength = 1.0 if self.strength is None else self.strength
            policy, name = steer(strength), f"{name}, {steered}, strength {strength:g}"
        rejected = None if self.rejected is None else load(self.rejected)
        made = sample_episodes(
            self._placed(policy, rejected),
            self.folder,
            episodes=self.episodes,
            name=name,
            rejected=rejected,
            greedy=self.greedy,
            seed=self.seed,
            num_envs=self.num_envs,
        )
        print(f"{made.folder}: {made.episodes:,} episodes, mean return {made.returns[0]:,.2f}")
        if rejected is not None:
            print(
                f"preferred to {made.episodes:,} of {self.rejected}, mean return "
                f"{made.returns[1]:,.2f}; learn from them with: marl fit-reward {made.folder}"
            )
            if made.returns[0] < made.returns[1]:
                warnings.warn(
                    f"{self.folder} prefers the team of the lower mean return; if that is not what "
                    "you want, name the other one by --rejected",
                    stacklevel=1,
                )
        return 0

    def _placed(self, policy: "Policy", rejected: "Policy | None") -> "Policy":
        """Return the policy in the environment that is played in."""
        from envs import open_env
        from marl.team_size import resized
        from marl.utils.plugins import check_trusted, environment_paths

        if rejected is not None:
            place = rejected.folder
            return resized(policy, rejected.config, rejected.spec, "--rejected", place)
        if self.config is None:
            return policy
        settings = load_config(self.config)
        check_trusted(environment_paths(settings), self.config)
        with open_env(settings.env.name, 1, **settings.env.options) as env:
            return resized(policy, settings, env.spec, "--config", self.config)
