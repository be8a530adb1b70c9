"""Where the networks live."""

import torch

from marl.config import ConfigError


def usable_device(name: str) -> torch.device:
    """Return the device that the setting `device` names; `ConfigError` if it is not there."""
    device = torch.device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"{count} GPU{'s' if count > 1 else ''}, cuda:0 first" if count else "no GPU"
        raise ConfigError(
            f"device: got {name!r}, but PyTorch {torch.__version__} finds {there}; set device = "
            '"cpu", or install a PyTorch with CUDA and a driver for it'
        )
    return device
