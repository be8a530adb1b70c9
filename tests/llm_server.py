"""A stand-in for a model's server: real HTTP on loopback, in process, with faults on demand.

It judges by the return told in each text ("return: 3"), with a constant bias towards the choice
that stands first, so that both-orders averaging has something to do.
"""

import contextlib
import json
import math
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Fault = Callable[["Handler", dict[str, Any]], bool]
"""Sends something else than an answer and returns True, or returns False to let it be answered."""

POSITION_BIAS = 3.0
"""Log-odds that the first choice gets on top."""


class _Listener(ThreadingHTTPServer):
    request_queue_size = 256  # connections that may wait, for many questions at once
    owner: "ModelServer"


class ModelServer:
    """A context manager; faults are taken from `faults` one per request, then `fault` for all."""

    def __init__(
        self,
        *,
        delay: float = 0.0,
        logprobs: bool = True,
        schema: bool = True,
        port: int = 0,
        remembers: bool = True,
    ) -> None:
        """Without `remembers`, what was asked is not kept."""
        self.delay, self.logprobs, self.schema, self.remembers = delay, logprobs, schema, remembers
        self.models: Any = ["stand-in"]
        """Names, or bytes to answer with in place of the list."""
        self.most_logprobs = 20
        """Requests for more candidates are answered by a 400."""
        self.refused_fields: set[str] = set()
        """Fields of a request that are answered by a 400."""
        self.faults: list[Fault] = []
        self.fault: Fault | None = None
        self.asked: list[dict[str, Any]] = []
        """Bodies of all requests for an answer."""
        self.answered: Counter[str] = Counter()
        """How often each body was answered in full, to the last byte."""
        self.keys: set[str] = set()
        """Authorization headers seen."""
        self.cookies: set[str] = set()
        """Cookies that came back."""
        self.connections: list[socket.socket] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._server = _Listener(("127.0.0.1", port), Handler)
        self._server.owner = self

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening and hang up; later connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle(self, handler: "Handler", body: dict[str, Any]) -> None:
        with self._lock:
            if self.remembers:
                self.asked.append(body)
            self.keys.add(handler.headers.get("Authorization", ""))
            self.cookies.update(handler.headers.get_all("Cookie", []))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            fault = self.faults.pop(0) if self.faults else self.fault
        try:
            if self.delay:
                time.sleep(self.delay)
            if fault is not None and fault(handler, body):
                return
            if refused := self.refused_fields & body.keys():
                handler.reply(400, {"error": {"message": f"unknown field {refused.pop()}"}})
                return
            if body.get("top_logprobs", 0) > self.most_logprobs:
                message = f"top_logprobs must be at most {self.most_logprobs}"
                handler.reply(400, {"error": {"message": message}})
                return
            handler.reply(200, self.answer(body))
            if self.remembers:
                with self._lock:
                    self.answered[json.dumps(body, sort_keys=True)] += 1
        except (BrokenPipeError, ConnectionResetError):
            pass
        finally:
            with self._lock:
                self._at_once -= 1

    def odds(self, body: dict[str, Any]) -> float:
        """Return the log-odds of the first choice."""
        question = body["messages"][-1]["content"]
        returns = [float(found) for found in re.findall(r"return: (-?[\d.]+)", question)]
        if len(returns) == 2:
            return returns[0] - returns[1] + POSITION_BIAS
        return returns[0] if returns else _guess(question)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return a whole completion."""
        question = body["messages"][-1]["content"]
        choices = ("A", "B") if "Attempt A" in question else ("Good", "Bad")
        odds = min(max(self.odds(body), -20.0), 20.0)
        probability = 1.0 / (1.0 + math.exp(-odds))
        best = choices[odds <= 0.0]
        text = json.dumps({"answer": best}) if self.schema and "response_format" in body else best
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if self.logprobs and body.get("logprobs"):
            shown = zip(choices, (probability, 1.0 - probability), strict=True)
            top = [{"token": c, "logprob": math.log(0.9 * max(p, 1e-9))} for c, p in shown]
            top.append({"token": "The", "logprob": math.log(0.1)})
            choice["logprobs"] = {"content": [{"token": best, "logprob": 0.0, "top_logprobs": top}]}
        return {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "stand-in",
            "choices": [choice],
            "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101},
        }


def _guess(question: str) -> float:
    """Return the log-odds of a text without a return, from what the known pairs say."""
    marks = re.findall(r": (-?[\d.]+)[^(\n]*\((more|less) is better\)", question)
    values = [float(value) * (1 if word == "more" else -1) for value, word in marks]
    if "Attempt A" in question:
        half = len(values) // 2
        return sum(values[:half]) - sum(values[half:]) + POSITION_BIAS
    return sum(values)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner.connections.append(self.connection)

    @property
    def owner(self) -> ModelServer:
        assert isinstance(self.server, _Listener)
        return self.server.owner

    def handle(self) -> None:
        with contextlib.suppress(ConnectionResetError):  # a killed client does not say goodbye
            super().handle()

    def do_GET(self) -> None:
        if isinstance(self.owner.models, bytes):
            self.reply(200, self.owner.models)
            return
        listed = [
            {"id": name, "object": "model", "created": 0, "owned_by": "me"}
            for name in self.owner.models
        ]
        self.reply(200, {"object": "list", "data": listed})

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        except ValueError:  # from a client that was killed while it wrote
            self.close_connection = True
            return
        self.owner.handle(self, body)

    def reply(
        self, status: int, content: Any, headers: dict[str, str] | None = None, kind: str = "json"
    ) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def status(code: int, headers: dict[str, str] | None = None, text: str = "no") -> Fault:
    """Answer with an error status."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.reply(code, {"error": {"message": text}}, headers)
        return True

    return fault


def body_of(
    content: bytes, kind: str = "json", headers: dict[str, str] | None = None, code: int = 200
) -> Fault:
    """Answer with some bytes."""

    def fault(handler: Handler, _: dict[str, Any]) -> bool:
        handler.reply(code, content, headers, kind)
        return True

    return fault


def changed(**fields: Any) -> Fault:
    """Answer, but with fields of the first choice replaced."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        answer = handler.owner.answer(body)
        answer["choices"][0] |= fields
        handler.reply(200, answer)
        return True

    return fault


def whole(**fields: Any) -> Fault:
    """Answer, but with fields of the whole reply replaced."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        handler.reply(200, handler.owner.answer(body) | fields)
        return True

    return fault


def edited(change: Callable[[bytes], bytes], kind: str = "json") -> Fault:
    """Answer, but with the bytes of the reply changed."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        handler.reply(200, change(json.dumps(handler.owner.answer(body)).encode()), kind=kind)
        return True

    return fault


def saying(content: Any, finish: str = "stop") -> Fault:
    """Answer with a text of one's own, without log-probabilities."""
    message = {"role": "assistant", "content": content}
    return changed(message=message, finish_reason=finish, logprobs=None)


def dropped(handler: Handler, _: dict[str, Any]) -> bool:
    """Close the connection without a word."""
    handler.connection.shutdown(2)
    handler.close_connection = True
    return True


def truncated(handler: Handler, body: dict[str, Any]) -> bool:
    """Close the connection in the middle of the body."""
    data = json.dumps(handler.owner.answer(body)).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data[: len(data) // 2])
    handler.wfile.flush()
    handler.connection.shutdown(2)
    handler.close_connection = True
    return True


def dripping(handler: Handler, _: dict[str, Any]) -> bool:
    """Send a byte now and then, for longer than any attempt may take."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)
    return True


def silent(handler: Handler, _: dict[str, Any]) -> bool:
    """Say nothing for longer than any attempt may take."""
    time.sleep(2.0)
    handler.close_connection = True
    return True
