"""Who may talk to the page's server: the page itself, with its token, and nobody else.

The page's code is open to any program on this machine; what it shows and stores is not.
"""

import hmac
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guard:
    """Refuses foreign hosts (421), foreign origins (403) and, under ``/api``, a wrong token (403).

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
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
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
        is_api = path.startswith("/api/")
        is_foreign = origin is not None and origin not in self._origins
        if is_foreign or (is_api and headers.get("sec-fetch-site") in ("cross-site", "same-site")):
            return _refused(HTTPStatus.FORBIDDEN, f"{origin or 'another site'} may not ask here")
        token = headers.get(TOKEN_HEADER, "").encode("latin-1", "replace")
        if is_api and not hmac.compare_digest(token, self._token):
            return _refused(HTTPStatus.FORBIDDEN, "the token is missing or of an earlier server")
        return None


def _refused(status: HTTPStatus, reason: str) -> JSONResponse:
    return JSONResponse({"refused": reason}, status)
