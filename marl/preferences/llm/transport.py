"""One attempt at one question over HTTP: a validated reply, or a fault."""

import asyncio
import itertools
import os
import re
import ssl
from typing import Any
from urllib.parse import urlsplit

import openai

from marl.config import ConfigError
from marl.config.llm import LlmConfig
from marl.preferences.llm.faults import Fault, fault_of
from marl.preferences.llm.replies import Reply, parsed

NO_KEY = "none"
"""What a local server gets; the client insists on something."""
_HIDDEN = "[key]"
POOL_SIZE = 8
"""Questions at once that share a pool of connections: with every question a pool looks at all of
its connections, which for 64 of them took a fifth of the time."""


class Transport:
    """A connection to the server of a configuration. Retries nothing and hides the key."""

    def __init__(self, config: LlmConfig) -> None:
        self._key = read_key(config)
        self._timeout = config.timeout
        pools = -(-config.concurrency // POOL_SIZE)
        certificates = ssl.create_default_context()
        self._clients = [
            openai.AsyncOpenAI(
                base_url=config.base_url or None,
                api_key=self._key or NO_KEY,
                max_retries=0,
                timeout=config.timeout,
                http_client=openai.DefaultAsyncHttpxClient(verify=certificates),
            )
            for _ in range(pools)
        ]
        self._client = self._clients[0]
        self._turns = itertools.cycle(self._clients)

    @property
    def base_url(self) -> str:
        """The endpoint, also where the configuration leaves it to the client."""
        return str(self._client.base_url)

    async def send(self, body: dict[str, Any]) -> Reply:
        """Return the reply to one request, or raise a `Fault`.

        `body` is what goes over the wire. The client's own time-out is per read, and a body that
        drips could take for ever: the whole attempt is timed here.
        """
        try:
            async with asyncio.timeout(self._timeout):
                # As extra body the messages go out as they are; the client would rebuild them.
                response = await next(self._turns).chat.completions.with_raw_response.create(
                    model=body["model"], messages=(), extra_body=body
                )
                return parsed(response.text)
        except TimeoutError:
            raise Fault("timeout", f"no whole reply within {self._timeout:g} s") from None
        except Exception as error:
            raise self._fault(error) from None

    async def models(self) -> list[str]:
        """Return the models that the server lists, or raise a `Fault`."""
        try:
            async with asyncio.timeout(self._timeout):
                page = await self._client.models.list()
            return sorted(str(model.id) for model in page.data or ())
        except TimeoutError:
            raise Fault("timeout", f"no list of models within {self._timeout:g} s") from None
        except (AttributeError, TypeError):
            raise Fault("garbled", "the list of models is none") from None
        except Exception as error:
            raise self._fault(error) from None

    async def close(self) -> None:
        """Close the connections."""
        for client in self._clients:
            await client.close()

    def _fault(self, error: Exception) -> Fault:
        """Return what an exception stands for, with the key hidden and nothing attached."""
        fault = error if isinstance(error, Fault) else fault_of(error)
        return Fault(fault.kind, self.hide_key(fault.detail), fault.retry_after)

    def hide_key(self, text: str) -> str:
        """Return a text without the key, nor what a server may echo of it; printable only."""
        text = "".join(c if c.isprintable() else "?" for c in text)
        if self._key:
            text = text.replace(self._key, _HIDDEN)
        return re.sub(r"\b(sk|key)-[\w*.-]+", _HIDDEN, text)


def read_key(config: LlmConfig) -> str:
    """Return the key from the environment, empty where a server of one's own needs none.

    An endpoint that carries a secret in its address is refused: addresses are recorded.
    """
    address = urlsplit(config.base_url)
    if "@" in address.netloc or address.query:
        raise ConfigError(
            "preferences.llm.base_url: holds a user, a password or a query, and would be recorded "
            f"with the run; put the key into the environment variable {config.api_key_env}"
        )
    if config.base_url and address.scheme not in ("http", "https"):
        raise ConfigError(
            f"preferences.llm.base_url: got {config.base_url!r}, expected http://... or https://..."
        )
    if not config.api_key_env.isidentifier():
        raise ConfigError(
            "preferences.llm.api_key_env: expected the name of an environment variable, such as "
            "OPENAI_API_KEY, and not a key"
        )
    key = os.environ.get(config.api_key_env, "").strip()
    if not key and not config.base_url and not config.offline:
        raise ConfigError(
            f"preferences.llm: the environment variable {config.api_key_env} is not set; set it, "
            "or name a server of your own by preferences.llm.base_url"
        )
    return key
