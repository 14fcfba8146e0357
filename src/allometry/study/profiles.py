"""How much of a study to run: a moment to see that it works, a minute for the direction, a quarter of an hour
for evidence, and whatever a better machine can give.

The limits are for a whole entry on two cores.  A profile also carries what a trial asks it: the study's
settings, and the values that were tuned for the trial's arm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PROFILES = ("tiny", "quick", "full", "large")
SECONDS: Mapping[str, float | None] = {"tiny": 3.0, "quick": 60.0, "full": 900.0, "large": None}


@dataclass(frozen=True)
class Profile:
    """A profile as a trial sees it; settings and tuned values are read as attributes.

    Attributes
    ----------
    name : {"tiny", "quick", "full", "large"}
    seeds : int
        Seeds of every cell.
    settings : dict
        The study's settings, those of this profile over those of all.
    tuned : dict
        What tuning chose for the trial's arm, by name.
    tuning : bool
        Whether this trial is one of those that tuning compares.

    Examples
    --------
    >>> profile = Profile("quick", 2, {"steps": 100}, tuned={"learning rate": 0.01})
    >>> profile.steps, profile.learning_rate
    (100, 0.01)
    """

    name: str
    seeds: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: Mapping[str, Any] = field(default_factory=dict)
    tuning: bool = False

    @property
    def seconds(self) -> float | None:
        """What the whole entry may take on two cores; None without limit."""
        return SECONDS[self.name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what pickle and copy ask for
            raise AttributeError(name)
        for source in (self.tuned, self.settings):
            for key, value in source.items():
                if key.replace(" ", "_") == name:
                    return value
        known = ", ".join(sorted([*self.settings, *self.tuned])) or "none"
        raise AttributeError(f"the {self.name} profile has no setting {name!r}; its settings are {known}")
