"""People as labeller, who answer on the page of ``marl label`` while training goes on."""

from marl.preferences.people.camera import Camera
from marl.preferences.people.labeller import PeopleLabeller, make_people
from marl.preferences.people.run_set import RunSet, manifest_of

__all__ = ["Camera", "PeopleLabeller", "RunSet", "make_people", "manifest_of"]
