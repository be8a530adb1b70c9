"""Attention over lists of entities, such as allies and enemies: their order does not matter.

`EntityEncoder` reads an observation; `EntityActions` lets each action that is about an entity, such
as to attack it, depend on that entity and not on its place in the list. So a policy that is asked
about permuted enemies permutes its attacks, and nothing else.

Axes: B rows, O observation features, A actions, F encoded features, L tokens (the agent itself and
all entities), K entities that actions are about, W width; ``*L`` any leading axes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from envs import EnvSpec
from marl.config import ConfigError
from marl.nn.layers import linear

WIDTH, HEADS = 32, 2
GAIN = math.sqrt(2.0)
"""Of layers before a rectifier."""


class EntityEncoder(nn.Module):
    """What an agent gathers from the entities that it sees, by attention whose queries are its own.

    With e_0 the embedding of what the agent knows of itself, e_k that of an entity (alike within a
    list) and u_h = U_h e_0, head h gathers sum_k softmax_k(u_h . e_k / sqrt(W)) e_k over itself and
    the entities that are present: keys and values are the embeddings themselves, so that an entity
    costs an embedding, and pairs of entities cost nothing. Absent are those whose features are all
    zero. Returned are e_0, the mean of each list, what the heads gathered, and the embeddings of
    the entities that actions are about.
    """

    def __init__(self, spec: EnvSpec, generator: torch.Generator) -> None:
        super().__init__()
        if not spec.entities:
            raise ConfigError(
                f'network.encoder, reward.encoder: "entities" reads lists of entities, and '
                f"{spec.name} tells of none; its EnvSpec.entities would say which features are "
                "whose"
            )
        self.lists = spec.entities
        whose = {i for of in spec.entities for i in range(of.first, of.first + of.count * of.size)}
        self.own = [i for i in range(spec.obs_size) if i not in whose]
        self.own_embedding = linear(max(1, len(self.own)), WIDTH, GAIN, generator)
        self.embeddings = nn.ModuleList(
            linear(of.size, WIDTH, GAIN, generator) for of in self.lists
        )
        self.queries = linear(WIDTH, HEADS * WIDTH, 1.0, generator)

    def forward(self, obs: Float[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        own = obs[:, self.own] if self.own else obs.new_ones(len(obs), 1)
        itself = torch.relu(self.own_embedding(own))
        lists, present = [], []
        for of_list, embedding in zip(self.lists, self.embeddings, strict=True):
            end = of_list.first + of_list.count * of_list.size
            entities = obs[:, of_list.first : end].unflatten(1, (of_list.count, of_list.size))
            lists.append(torch.relu(embedding(entities)))
            present.append((entities != 0).any(dim=-1))
        tokens = torch.cat((itself.unsqueeze(1), *lists), dim=1)
        seen = torch.cat((torch.ones_like(present[0][:, :1]), *present), dim=1)
        queries = self.queries(itself).unflatten(-1, (HEADS, WIDTH))
        fits = torch.bmm(queries / math.sqrt(WIDTH), tokens.mT)
        weights = fits.masked_fill(~seen.unsqueeze(1), -torch.inf).softmax(dim=-1)
        gathered = torch.bmm(weights, tokens).flatten(1)
        means = [_mean(part, there) for part, there in zip(lists, present, strict=True)]
        named = [
            part.flatten(1)
            for part, of_list in zip(lists, self.lists, strict=True)
            if of_list.first_action >= 0
        ]
        return torch.cat((itself, gathered, *means, *named), dim=-1)


def _mean(tokens: Float[Tensor, "B L W"], present: Tensor) -> Float[Tensor, "B W"]:
    """Return the mean over those present; zero where nobody is."""
    weight = present.unsqueeze(-1).to(tokens.dtype)
    return (weight * tokens).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)


class EntityActions:
    """Which discrete actions are about which entities. It has no parameters."""

    def __init__(self, spec: EnvSpec) -> None:
        lists = [of_list for of_list in spec.entities if of_list.first_action >= 0]
        self.counts = [of_list.count for of_list in lists]
        about = [
            list(range(of_list.first_action, of_list.first_action + of_list.count))
            for of_list in lists
        ]
        named = [action for actions in about for action in actions]
        self.others = [action for action in range(spec.action_size) if action not in set(named)]
        """Actions that are about nobody."""
        self.about = about
        order = [*self.others, *named]
        self.places = [order.index(action) for action in range(spec.action_size)]
        """Where each action stands behind those about nobody."""

    @property
    def num_tokens(self) -> int:
        """K."""
        return sum(self.counts)

    @property
    def outputs(self) -> int:
        """How many outputs of a network `logits` takes: one for each other action, and a query of
        W numbers for each list."""
        return len(self.others) + WIDTH * len(self.counts)

    @property
    def columns(self) -> int:
        """How many columns `described` returns."""
        return len(self.others) + (1 + WIDTH) * len(self.counts)

    def logits(
        self, outputs: Float[Tensor, "*L Q"], tokens: Float[Tensor, "*L K W"]
    ) -> Float[Tensor, "*L A"]:
        """Return a logit for each action; of one about an entity, how well its token fits."""
        sizes = [WIDTH] * len(self.counts)
        others, *queries = outputs.split([len(self.others), *sizes], dim=-1)
        lists = tokens.split(self.counts, dim=-2)
        fits = [
            (entities * query.unsqueeze(-2)).sum(dim=-1) / math.sqrt(WIDTH)
            for entities, query in zip(lists, queries, strict=True)
        ]
        return torch.cat((others, *fits), dim=-1)[..., self.places]

    def described(
        self, actions: Float[Tensor, "*L A"], tokens: Float[Tensor, "*L K W"]
    ) -> Float[Tensor, "*L C"]:
        """Return one-hot actions by what they are about: others as they are; for each list whether
        one of its entities is named, and the token of that one."""
        parts = [actions[..., self.others]]
        for about, entities in zip(self.about, tokens.split(self.counts, dim=-2), strict=True):
            named = actions[..., about]
            parts.append(named.sum(dim=-1, keepdim=True))
            parts.append((named.unsqueeze(-1) * entities).sum(dim=-2))
        return torch.cat(parts, dim=-1)
