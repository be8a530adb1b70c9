"""People as labeller, who answer on the page of ``marl label`` while training goes on."""

from marl.preferences.people.labeller import (
    Camera,
    PeopleLabeller,
    RunDataset,
    make_people,
    manifest_of,
)

__all__ = ["Camera", "PeopleLabeller", "RunDataset", "make_people", "manifest_of"]
