"""People as labeller, who answer on the page of ``marl label`` while training goes on."""

from marl.preferences.people.camera import Camera, RunDataset, manifest_of
from marl.preferences.people.labeller import PeopleLabeller, make_people

__all__ = ["Camera", "PeopleLabeller", "RunDataset", "make_people", "manifest_of"]
