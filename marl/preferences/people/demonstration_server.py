"""The server of the page on which a person plays episodes: what it shows, and what it is sent.

Who may ask it what is the guard's of `marl.preferences.people.server`.
"""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.types import ASGIApp

from envs import EnvError
from envs.frames import agent_colour
from marl.preferences.people.demonstration import Demonstrating, IllegalMoveError
from marl.preferences.people.server import error_reply, guarded, new_app
from marl.preferences.people.session import StaleError
from marl.utils.text import printable

PAGE = "demonstrate.html"
"""The page's file."""


def make_app(demonstrating: Demonstrating, title: str, token: str, port: int) -> ASGIApp:
    """Return the application for one person and one environment, behind its guard."""
    page, app = Page(demonstrating, title), new_app("marl demonstrate")
    app.add_api_route("/api/turn", page.turn, methods=["GET"])
    app.add_api_route("/api/act", page.act, methods=["POST"])
    app.add_api_route("/api/keep", page.keep, methods=["POST"])
    app.add_api_route("/api/again", page.again, methods=["POST"])
    app.add_exception_handler(StaleError, page.stale)
    app.add_exception_handler(IllegalMoveError, _illegal)
    app.add_exception_handler(EnvError, _failing)
    return guarded(app, token, port)


class ActPost(BaseModel):
    """What the page sends when the key of an action was pressed."""

    model_config = ConfigDict(extra="forbid")

    id: str
    action: Annotated[StrictInt, Field(ge=0, le=1000)]


class TurnPost(BaseModel):
    """The turn that the page shows while an episode is kept or begun anew."""

    model_config = ConfigDict(extra="forbid")

    id: str


class Page:
    """What the page asks the server. Every reply is what to show next."""

    def __init__(self, demonstrating: Demonstrating, title: str) -> None:
        self._demonstrating = demonstrating
        self._title = printable(title)

    async def turn(self) -> dict[str, Any]:
        """Return the current turn."""
        return self._shown()

    async def act(self, post: ActPost) -> dict[str, Any]:
        """Take an action of the agent that waits."""
        self._demonstrating.act(post.id, post.action)
        return self._shown()

    async def keep(self, post: TurnPost) -> dict[str, Any]:
        """Store the episode that is over."""
        self._demonstrating.keep(post.id)
        return self._shown()

    async def again(self, post: TurnPost) -> dict[str, Any]:
        """Begin the episode anew."""
        self._demonstrating.again(post.id)
        return self._shown()

    async def stale(self, *_: object) -> Response:
        """Return, to what belongs to another turn, the current one."""
        return JSONResponse(self._shown(), HTTPStatus.CONFLICT)

    def _shown(self) -> dict[str, Any]:
        """Return the turn and how many episodes are kept."""
        session = self._demonstrating
        turn, spec = session.turn(), session.env.spec
        status = "done" if session.is_done() else "over" if turn.agent is None else "act"
        agent = turn.agent
        return {
            "title": self._title,
            "status": status,
            "id": turn.id,
            "step": turn.step,
            "max_steps": spec.max_steps,
            "agent": None if agent is None else printable(spec.agent_name(agent)),
            "colour": None if agent is None else agent_colour(agent),
            "moves": [vars(move) for move in turn.moves],
            "frame": turn.frame.to_json(),
            "return": turn.episode_return,
            "kept": session.kept,
            "goal": session.goal,
        }


async def _illegal(_: object, error: Exception) -> Response:
    """Return which action cannot be taken."""
    return error_reply(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))


async def _failing(_: object, error: Exception) -> Response:
    """Return what is wrong with the environment."""
    return error_reply(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
