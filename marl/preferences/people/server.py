"""The server of the labelling page: FastAPI on this machine only, for the page itself alone.

The page's code is open to any program on this machine; what it shows and stores needs the token in
the printed address. Handlers never wait for anything but the disk, so that one is done before the
next begins: an answer is stored before any other request is looked at. Every refusal and error is
a sentence as JSON.
"""

import hmac
import socket
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marl.preferences.dataset.footage import frames_path, packed, read_frames
from marl.preferences.dataset.untrusted import MAX_NUMBER, DatasetError
from marl.preferences.people.session import MOST_LETTERS, Choice, Labelling, StaleError
from marl.utils.text import one_line, printable

STATIC = Path(__file__).parent / "static"
TOKEN_HEADER = "x-marl-token"
_NAMES = ("127.0.0.1", "localhost")

SECURITY_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; style-src 'self'; img-src 'self' data:; object-src 'none'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
_GZIP = {"content-encoding": "gzip"}
_MAX_POST = 2**16
"""Bytes of a request; an answer has about a hundred."""


def make_app(labelling: Labelling, title: str, token: str, port: int) -> ASGIApp:
    """Return the application for one person and one dataset, behind its guard."""
    page, app = Page(labelling, title), new_app("marl label")
    app.add_api_route("/api/question", page.question, methods=["GET"])
    app.add_api_route("/api/frames/{number}", page.frames, methods=["GET"])
    app.add_api_route("/api/answer", page.answer, methods=["POST"])
    app.add_api_route("/api/undo", page.undo, methods=["POST"])
    app.add_api_route("/api/task", page.task, methods=["POST"])
    app.add_exception_handler(StaleError, page.stale)
    return guarded(app, token, port)


def new_app(command: str) -> FastAPI:
    """Return an application without routes that says every error in a sentence."""
    app = FastAPI(title=command, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(RequestValidationError, _malformed)
    for kind in (DatasetError, OSError):
        app.add_exception_handler(kind, _broken)
    app.add_exception_handler(Exception, _failed)
    return app


def guarded(app: FastAPI, token: str, port: int) -> ASGIApp:
    """Return an application with the pages' files, behind its guard."""
    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return Guard(app, token, port)


class Guard:
    """Refuses foreign hosts (421), foreign origins (403) and, under ``/api``, a wrong token (403).

    So it does with what is too large (413).

    A foreign host is how a web page reaches a server on its reader's own machine by giving its
    domain that machine's address. A web page cannot send the token's header to another origin
    without a permission that is never given here.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = {f"{name}:{port}" for name in _NAMES}
        self._origins = {f"http://{host}" for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # the server speaks nothing but HTTP
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *SECURITY_HEADERS]
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        await (self._app if refusal is None else refusal)(scope, receive, send_guarded)

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        """Return what to answer instead of the page; None if the request may pass."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._hosts:
            reason = f"this server is not {host or 'a nameless host'}; open the address it printed"
            return _refused(HTTPStatus.MISDIRECTED_REQUEST, reason)
        if "upgrade" in headers:
            return _refused(HTTPStatus.BAD_REQUEST, "this server takes no other protocol than HTTP")
        if not is_small(headers):
            return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "what is sent here is no answer")
        if not path.isprintable():
            return _refused(HTTPStatus.NOT_FOUND, "there is no such page")
        is_api = path.startswith("/api/")
        is_foreign = origin is not None and origin not in self._origins
        if is_foreign or (is_api and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return _refused(HTTPStatus.FORBIDDEN, f"{origin or 'another site'} may not ask here")
        token = headers.get(TOKEN_HEADER, "").encode("latin-1", "replace")
        if is_api and not hmac.compare_digest(token, self._token):
            return _refused(HTTPStatus.FORBIDDEN, "the token is missing or of an earlier server")
        return None


def is_small(headers: Headers) -> bool:
    """Return whether a request says that it is no longer than an answer can be.

    The server reads no more than it says.
    """
    size = headers.get("content-length", "0")
    is_number = size.isdecimal() and len(size) < 10
    return "transfer-encoding" not in headers and is_number and int(size) <= _MAX_POST


class AnswerPost(BaseModel):
    """What the page sends when a key was pressed."""

    model_config = ConfigDict(extra="forbid")

    id: str
    choice: Choice
    seconds: float | None = Field(default=None, ge=0.0, allow_inf_nan=False)


class UndoPost(BaseModel):
    """The pair that the page shows while an undo is asked for."""

    model_config = ConfigDict(extra="forbid")

    id: str | None


class TaskPost(BaseModel):
    """What the team should achieve, in the person's words."""

    model_config = ConfigDict(extra="forbid")

    task: str = Field(min_length=1, max_length=MOST_LETTERS)


EpisodeNumber = Annotated[int, PathParameter(ge=0, le=MAX_NUMBER)]


class Page:
    """What the page asks the server. Every reply but an episode's frames is what to show next."""

    def __init__(self, labelling: Labelling, title: str) -> None:
        self._labelling = labelling
        self._title = printable(title)

    async def question(self) -> dict[str, Any]:
        """Return the current pair."""
        return self._shown()

    async def frames(self, number: EpisodeNumber) -> Response:
        """Return the frames of an episode; 404 where it has none."""
        folder = self._labelling.folder
        if not frames_path(folder, number).exists():
            return error_reply(HTTPStatus.NOT_FOUND, f"episode {number} was not filmed")
        content = packed(read_frames(folder, number))
        return Response(content, media_type="application/json", headers=_GZIP)

    async def answer(self, post: AnswerPost) -> dict[str, Any]:
        """Store an answer."""
        self._labelling.answer(post.id, post.choice, post.seconds)
        return self._shown()

    async def undo(self, post: UndoPost) -> dict[str, Any]:
        """Withdraw the latest answer."""
        self._labelling.undo(post.id)
        return self._shown()

    async def task(self, post: TaskPost) -> dict[str, Any]:
        """Keep what the team should achieve."""
        self._labelling.set_task(printable(one_line(post.task, MOST_LETTERS)))
        return self._shown()

    async def stale(self, *_: object) -> Response:
        """Return, to what belongs to another pair, the current one."""
        return JSONResponse(self._shown(), HTTPStatus.CONFLICT)

    def _shown(self) -> dict[str, Any]:
        """Return the pair, if there is one, and the progress; never a reward."""
        question, progress = self._labelling.question(), self._labelling.progress()
        status = "done" if self._labelling.is_done() else "waiting"
        return {
            "title": self._title,
            "task": printable(self._labelling.task()),
            "training": self._labelling.training(),
            "status": status if question is None else "ask",
            "id": None if question is None else question.id,
            "episodes": None if question is None else list(question.pair),
            "answered": progress.answered,
            "goal": progress.goal,
            "same": progress.agreement.same,
            "repeats": progress.agreement.repeats,
            "understood": progress.learned.same,
            "decided": progress.learned.repeats,
        }


def _refused(status: HTTPStatus, reason: str) -> JSONResponse:
    return JSONResponse({"refused": reason}, status)


def error_reply(status: HTTPStatus, text: str) -> JSONResponse:
    """Return why something could not be done, for a page to show."""
    return JSONResponse({"error": printable(text)}, status)


async def _malformed(_: object, error: Exception) -> Response:
    """Return what is wrong with a request, without what it holds, which may be no JSON (NaN)."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    place = one_line(".".join(map(str, fault["loc"])))
    return error_reply(HTTPStatus.UNPROCESSABLE_ENTITY, f"{place}: {one_line(fault['msg'])}")


async def _broken(_: object, error: Exception) -> Response:
    """Return what is wrong on the disk, for the page to show."""
    return error_reply(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))


async def _failed(request: Request, error: Exception) -> Response:
    """Return that this program is at fault; the server prints where."""
    text = f"{request.app.title} has failed ({type(error).__name__}); its terminal says more"
    return error_reply(HTTPStatus.INTERNAL_SERVER_ERROR, text)


def listening(port: int) -> socket.socket:
    """Return a socket on the loopback interface; port 0 takes a free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()  # a request before the server is ready waits instead of failing
    except OSError:
        listener.close()
        raise
    return listener


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until Ctrl-C."""
    config = uvicorn.Config(
        app, log_level="error", access_log=False, server_header=False, ws="none"
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it once it has ended in good order
        uvicorn.Server(config).run(sockets=[listener])
