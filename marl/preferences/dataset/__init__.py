"""Preference datasets: episodes, and answers about pairs of them, in a folder of open formats.

    DIR/
      dataset.toml          what the arrays mean
      episodes/000003.npz   one finished episode
      frames/000003.json.gz what it looks like; optional
      answers.jsonl         who preferred which
      questions.json        {"open": [[3, 17], ...]}: what a run asks people; optional

``dataset.toml`` holds ``format = 1``; ``[environment]`` with its ``name`` and ``options``;
``[spec]``, the fields of `envs.EnvSpec` (sizes of each agent's observation and action, of the
state, the kind of action, ``max_steps``, ``agents_die``, ``masks_actions``, and a table for each
fact); and ``[origin]``, free words on where the data comes from. A newer format is refused.

An episode is a NumPy archive (read without pickles) of L steps of N agents, named by its number in
the dataset. Numbers may have gaps; those of an exported run are the run's own.

    obs (L, N, O), state (L, S)       float32: before each step; padded with zeros; pictures uint8
    actions (L, N) or (L, N, A)       int64 choices, or float32
    step_facts (L, F)                 float32: after each step, in the order of [[spec.facts]]
    alive (L, N)                      bool: only where agents die
    action_mask (L, N, A)             bool: only where some actions are illegal
    final_obs (N, O), final_state (S), facts (F)    what the last step led to
    final_alive (N)                   bool: alive after the final step; else the last row of alive
    return, terminated                sum of the task's rewards; whether the task itself ended
    demonstration                     true where the episode shows how it is done; may be left out

``answers.jsonl`` has one JSON object a line and is only ever appended to (`AnswerLog`):

    {"first": 3, "second": 17, "label": 1.0, "source": "person:ann", "at": "...", "seconds": 2.4}
    {"undo": true, "source": "person:ann", "at": "..."}

``label`` is P(first preferred): 1 first, 0 second, 0.5 tie, null skipped. An undo withdraws the
latest standing answer of its source. Answers about episodes that are not there are left out.

A dataset is not trusted (`untrusted.py`). Of an archive only these arrays are read, once
their headers fit the manifest and the free memory; members are stored or deflated, and hold numbers
or truth values. Numbers of episodes end at 2^53 - 1, a line of answers at 64 KiB, a file of frames,
as JSON, at 32 MiB. Whatever is wrong is a `DatasetError` of one line. ``--skip-damaged``, in Python
`skip_damaged`, leaves damaged episodes, answers and questions out, with a warning.

From Python, `PreferenceDataset.create`, `add_episode` and `answers.append` bring foreign data in.
"""

from marl.preferences.dataset.answers import Answer, AnswerLog, now
from marl.preferences.dataset.dataset import EpisodeArchive, PreferenceDataset
from marl.preferences.dataset.format import DatasetEnvironment, EpisodeRecord, Manifest
from marl.preferences.dataset.untrusted import DatasetError

__all__ = [
    "Answer",
    "AnswerLog",
    "DatasetEnvironment",
    "DatasetError",
    "EpisodeArchive",
    "EpisodeRecord",
    "Manifest",
    "PreferenceDataset",
    "now",
]
