"""The checks of shapes that tests run with."""

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that checks its parameters or, if it names what it returns, that alone.

    jaxtyping calls one function of the first kind before a call and one of the second kind after
    it. The second one would repeat the parameters' checks, two fifths of all in a small run.
    """
    annotations = function.__annotations__
    if annotations.get("return", Any) is not Any:
        function.__annotations__ = {"return": annotations["return"]}
    return beartype(function)
