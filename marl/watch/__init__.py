"""A trained team on film, with what it learned to reward beside each agent."""

from marl.watch.film import film_run
from marl.watch.play import Play, play

__all__ = ["Play", "film_run", "play"]
