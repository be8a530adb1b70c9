"""While testing, the shapes in the signatures of the tensor modules are enforced."""

import torch
from jaxtyping import install_import_hook

TENSOR_MODULES = [
    "marl.actors",
    "marl.advantages",
    "marl.evaluate",
    "marl.mappo",
    "marl.networks",
    "marl.normalisers",
    "marl.numerics",
    "marl.policy",
    "marl.preferences",
    "marl.rewards",
    "marl.rollout",
    "marl.streams",
    "marl.trajectories",
    "marl.types",
]

install_import_hook(TENSOR_MODULES, "beartype.beartype")
torch.set_num_threads(1)
