"""People as labeller, who answer on the page of ``marl label`` while training goes on."""

from marl.preferences.people.camera import Camera
from marl.preferences.people.labeller import PeopleLabeller, make_people

__all__ = ["Camera", "PeopleLabeller", "make_people"]
