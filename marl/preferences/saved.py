"""What a run's checkpoint keeps of its episodes and its answers, to be read and not trained on.

Axes: B pairs, M episodes.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from envs import EnvSpec
from marl.config import Config, PreferenceConfig
from marl.data.replay import make_replay
from marl.preferences.factory import make_labeller
from marl.preferences.labellers import EpisodePairs, checked_labels, load_labeller_state
from marl.preferences.pipeline import PreferenceBuffer, Tally
from marl.utils.seeding import Seeds
from marl.utils.trust import check_trusted, labeller_paths

CPU = torch.device("cpu")


class SavedFeedback:
    """The replay buffer and the answers of a `FeedbackPipeline`, from its state and on the CPU.

    The labeller is made only when it is asked something: it may be a stranger's code.
    """

    def __init__(self, state: dict[str, Any], config: Config, spec: EnvSpec, folder: Path) -> None:
        """`state` is what the pipeline's `state_dict` returned; `folder` is the run's."""
        self._folder = folder
        self._config = config
        self._spec = replace(spec, num_envs=config.env.num_envs)
        self._labeller_state = state["labeller"]
        preferences = config.preferences
        self.replay = make_replay(self._spec, config.learner.rollout_steps, preferences, CPU)
        self.replay.load_state_dict(state["replay"])
        self.answers = PreferenceBuffer(preferences.buffer_pairs, CPU)
        self.answers.load_state_dict(state["buffer"])
        self.tally = Tally(preferences.labeller)
        self.tally.load_state_dict(state["tally"])

    def whole_episodes(self) -> Int64[Tensor, "M"]:
        """Return the numbers of all whole episodes, oldest first."""
        replay = self.replay
        return torch.cat((replay.available(), replay.available(held_out=True))).sort().values

    def is_known(self, numbers: Int64[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return of which episodes return, length and facts are kept, if not every step."""
        return numbers >= self.replay.num_finished - self.replay.max_episodes

    def ask(
        self,
        first: Int64[Tensor, "B"],
        second: Int64[Tensor, "B"],
        other: PreferenceConfig | None = None,
    ) -> Float[Tensor, "B"]:
        """Return what the run's labeller says of some pairs now, or that of `other` settings.

        The run's goes on from what it remembered, if the run is trusted.
        """
        if other is None:
            check_trusted(labeller_paths(self._config), self._folder, self._config)
        preferences = other or self._config.preferences
        labeller = make_labeller(preferences, self._spec, Seeds(self._config.seed))
        if other is None:
            load_labeller_state(labeller, self._labeller_state)
        if len(first) == 0:
            return torch.zeros(0)
        pairs = EpisodePairs(first=self.replay.episodes(first), second=self.replay.episodes(second))
        return checked_labels(labeller, preferences.labeller, pairs).cpu()
