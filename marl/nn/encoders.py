"""Encoders: what a network makes of an agent's observation, or of the state, before its layers.

Pictures are read by convolutions; `ENCODERS` names what else there is, and an import path names
yours. An encoder reads one agent's observation at a time and does not know whose it is: the one-hot
ids come behind it.

Axes: B rows, N agents, O observation, S state, F encoded features, C channels, K entities that
actions are about, W width of their tokens; ``*L`` any leading axes.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from envs import EnvError, EnvSpec
from envs.plugins import explained
from marl.config import ConfigError
from marl.config.presets import ENTITIES
from marl.nn.entities import WIDTH, EntityActions, EntityEncoder
from marl.nn.layers import Tanh, linear
from marl.utils.plugins import PluginError, load

FEATURES = 64
"""F of the encoders that ship."""
CHANNELS = (16, 32, 32, 32, 32)
"""Of each convolution, at most so many."""
SMALL = 8
"""Side in pixels from which on a picture is not halved again."""
MAX_PIXELS = 4_000_000
"""Pixels in one pass, about 200 MB of inner layers. Of more, each part's pass is done again for its
gradient, so that memory holds the inner layers of one part only."""


def halved(height: int, width: int) -> list[tuple[int, int]]:
    """Return height and width before the first convolution and after each."""
    sides = [(height, width)]
    while max(sides[-1]) > SMALL and len(sides) <= len(CHANNELS):
        height, width = sides[-1]
        sides.append(((height + 1) // 2, (width + 1) // 2))
    return sides


class ImageEncoder(nn.Module):
    """Convolutions of 3 x 3 that halve a picture until its sides are at most 8, and a linear layer.

    There are at most five. Pixels of 0 to 255 are divided by 255.
    """

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        """`shape` is height, width and channels."""
        super().__init__()
        self.shape = shape
        layers: list[nn.Module] = []
        channels, sides = shape[2], halved(*shape[:2])
        for outputs in CHANNELS[: len(sides) - 1]:
            layer = nn.Conv2d(channels, outputs, 3, stride=2, padding=1)
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0), generator=generator)
            with torch.no_grad():
                layer.bias.zero_()  # type: ignore[union-attr]  # a bias is the default
            layers += [layer, nn.ReLU()]
            channels = outputs
        self.convolutions = nn.Sequential(*layers)
        flat = channels * sides[-1][0] * sides[-1][1]
        self.output = linear(flat, FEATURES, math.sqrt(2.0), generator)
        self.activation = Tanh()

    def forward(self, pixels: Num[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        if torch.compiler.is_compiling():  # an export is for any number of rows
            return self._encoded(pixels)
        parts = pixels.split(max(1, MAX_PIXELS // (self.shape[0] * self.shape[1])))
        if len(parts) == 1:
            return self._encoded(pixels)
        if not torch.is_grad_enabled():
            return torch.cat([self._encoded(part) for part in parts])
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(self._encoded, part) for part in parts])

    def _encoded(self, pixels: Num[Tensor, "B O"]) -> Float[Tensor, "B F"]:
        picture = pixels.unflatten(-1, self.shape).movedim(-1, -3)
        picture = picture.to(self.output.weight.dtype) / 255.0
        return self.activation(self.output(self.convolutions(picture).flatten(1)))


class AgentEncoder(nn.Module):
    """One encoder for all agents, or one each."""

    def __init__(
        self, encoders: list[nn.Module], features: int, about: EntityActions | None = None
    ) -> None:
        """`about` says which actions are about entities, whose tokens stand behind the features."""
        super().__init__()
        self.encoders = nn.ModuleList(encoders)
        self.about = about
        self.features = features - (0 if about is None else about.num_tokens * WIDTH)
        """F."""

    def forward(self, obs: Num[Tensor, "*L N O"]) -> Float[Tensor, "*L N F"]:
        return self.with_tokens(obs)[0]

    def with_tokens(
        self, obs: Num[Tensor, "*L N O"]
    ) -> tuple[Float[Tensor, "*L N F"], Float[Tensor, "*L N K W"] | None]:
        """Return the features, and the tokens of the entities that actions are about."""
        if len(self.encoders) == 1:
            return self.of_agent(obs, 0)
        agents = range(obs.shape[-2])
        parts = [self.of_agent(obs[..., i, :], i) for i in agents]
        tokens = None
        if self.about is not None:
            tokens = torch.stack([part[1] for part in parts if part[1] is not None], dim=-3)
        return torch.stack([part[0] for part in parts], dim=-2), tokens

    def of_agent(
        self, obs: Num[Tensor, "*L O"], agent: int
    ) -> tuple[Float[Tensor, "*L F"], Float[Tensor, "*L K W"] | None]:
        """Return the same of what one agent observes."""
        encoder = self.encoders[agent if len(self.encoders) > 1 else 0]
        out = encoder(obs.flatten(0, -2)).unflatten(0, obs.shape[:-1])
        if self.about is None:
            return out, None
        features, tokens = out.tensor_split((self.features,), dim=-1)
        return features, tokens.unflatten(-1, (self.about.num_tokens, WIDTH))


class EncodedBody(nn.Module):
    """Layers behind an encoder of observations; what an encoder does not read comes beside it."""

    def __init__(self, encoder: AgentEncoder, body: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.body = body


class StateEncoder(nn.Module):
    """One encoder of the pictures that a state consists of, whose features stand side by side."""

    def __init__(self, shape: tuple[int, ...], generator: torch.Generator) -> None:
        """`shape` is that of `EnvSpec.state_images`."""
        super().__init__()
        self.count = shape[0]
        self.encoder = ImageEncoder(shape[1:], generator)
        self.features = self.count * FEATURES

    def forward(self, state: Num[Tensor, "*L S"]) -> Float[Tensor, "*L F"]:
        pictures = state.unflatten(-1, (self.count, -1)).flatten(0, -2)
        return self.encoder(pictures).view(*state.shape[:-1], self.features)


ENCODERS: dict[str, Callable[[EnvSpec, torch.Generator], nn.Module]] = {ENTITIES: EntityEncoder}
"""By the name in ``network.encoder`` and ``reward.encoder``: (B, O) in, (B, F) out."""


def make_encoder(
    spec: EnvSpec, encoder: str, setting: str, *, shared: bool, generator: torch.Generator
) -> AgentEncoder | None:
    """Return the encoder that `setting` names, None where observations are read as they are.

    Raises `ConfigError` for a name that there is not, and `PluginError` where a module of the
    user's does not do what it must.
    """
    make: Callable[[], nn.Module]
    if encoder in ENCODERS:
        make = partial(ENCODERS[encoder], spec, generator)
    elif ":" in encoder:
        make = partial(_own_encoder, encoder, spec, setting, generator)
    elif encoder:
        raise ConfigError(
            f"{setting}: got {encoder!r}, expected {', '.join(ENCODERS)}, an import path such as "
            "my_nets:Encoder, or nothing"
        )
    elif spec.obs_image:
        make = partial(ImageEncoder, spec.obs_image, generator)
    else:
        return None
    encoders = [make() for _ in range(1 if shared else spec.num_agents)]
    about = EntityActions(spec) if encoder == ENTITIES else None
    about = about if about is not None and about.num_tokens else None
    return AgentEncoder(encoders, _features(encoders[0], spec, encoder, setting), about)


def make_state_encoder(spec: EnvSpec, generator: torch.Generator) -> StateEncoder | None:
    """Return what reads a state of pictures; None where it is read as it is."""
    return StateEncoder(spec.state_images, generator) if spec.state_images else None


def _own_encoder(path: str, spec: EnvSpec, setting: str, generator: torch.Generator) -> nn.Module:
    """Return the user's module at an import path, seeded by the run."""
    make = load(path, setting)
    with torch.random.fork_rng(devices=[]):  # its layers draw from PyTorch's global generator
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        module = _told(setting, path, lambda: make(spec), make)
    if not isinstance(module, nn.Module):
        raise PluginError(
            f"{setting}: {path} made a {type(module).__name__}, expected a torch.nn.Module from "
            "observations (rows, features) to (rows, any number of features)"
        )
    return module


def _features(module: nn.Module, spec: EnvSpec, path: str, setting: str) -> int:
    """Return F, found out with two observations of zeros."""
    dtype = torch.uint8 if spec.obs_image else torch.float32
    obs = torch.zeros(2, spec.obs_size, dtype=dtype)
    with torch.no_grad():
        out = _told(setting, path, lambda: module(obs), module.forward)
    if not isinstance(out, Tensor):
        got = f"a {type(out).__name__}"
    elif out.ndim != 2 or len(out) != 2 or not out.is_floating_point():
        got = f"{str(out.dtype).removeprefix('torch.')} of shape {tuple(out.shape)}"
    else:
        return out.shape[1]
    raise PluginError(
        f"{setting}: {path or type(module).__name__} made {got} of observations of shape "
        f"{tuple(obs.shape)}; return floats of shape (2, features), one row for each"
    )


def _told(
    setting: str, path: str, call: Callable[[], object], blamed: Callable[..., object]
) -> object:
    """Return what a call of the user's module returns, or raise `PluginError` with its line."""
    try:
        with explained(f"{setting}: {path}", blamed=blamed):
            return call()
    except EnvError as error:
        raise PluginError(str(error)) from error


def input_widths(spec: EnvSpec, encoder: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers through which an observation and a state reach a network's own layers.

    The first is what they hold, the last what the network reads; of an encoder of the user's
    nobody knows the widths.
    """
    obs: tuple[int, ...] = (spec.obs_size,)
    state: tuple[int, ...] = (spec.state_size,)
    if encoder:
        obs = (1,)
    elif spec.obs_image:
        obs = (_flat(spec.obs_image), FEATURES)
    if spec.state_images:
        state = (_flat(spec.state_images[1:]), FEATURES)
    return obs, state


def _flat(shape: tuple[int, ...]) -> int:
    """Return what a picture's convolutions make of it, flattened."""
    height, width, channels = shape
    sides = halved(height, width)
    outputs = (channels, *CHANNELS)[len(sides) - 1]
    return outputs * sides[-1][0] * sides[-1][1]
