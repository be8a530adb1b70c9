"""While testing, the shapes in the signatures of the tensor modules are enforced."""

import torch
from jaxtyping import install_import_hook

TENSOR_MODULES = [
    "marl.acting",
    "marl.actors",
    "marl.advantages",
    "marl.critics",
    "marl.evaluate",
    "marl.mappo",
    "marl.memory",
    "marl.minibatches",
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
