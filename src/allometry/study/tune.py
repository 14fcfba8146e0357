"""Choosing a value for each arm before the trials, on data and seeds that the trials do not see.

Every arm gets the same grid and the same care; an arm that was not tuned would be compared at another's best
value.  What tuning costs is recorded beside the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from allometry.study.profiles import PROFILES

FRESH = 1_000_000  # tuning's seeds begin here: no trial has one of them


@dataclass(frozen=True)
class Tune:
    """What to choose, among which values, by which measure.

    Parameters
    ----------
    name : str
        Read in the trial as an attribute of the profile: ``"learning rate"`` as ``profile.learning_rate``.
    values : sequence, or mapping of profile to sequence
    on : str
        The column of the trial's records to minimise (the last record of a run counts): a validation measure,
        not the one that is reported, where the two differ.
    seeds : int
        Fresh seeds of each value.
    at : {"smallest", "each"}
        Tune at the smallest value of every axis and keep the choice for all, or at each point.
    maximise : bool

    Examples
    --------
    >>> Tune("learning rate", (0.01, 0.03, 0.1), on="validation loss").grid("quick")
    (0.01, 0.03, 0.1)
    """

    name: str
    values: Sequence[Any] | Mapping[str, Sequence[Any]]
    on: str
    seeds: int = 1
    at: Literal["smallest", "each"] = "smallest"
    maximise: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.at not in ("smallest", "each"):
            raise ValueError(f"at must be 'smallest' or 'each', not {self.at!r}")
        if isinstance(self.values, Mapping) and set(self.values) - set(PROFILES):
            raise ValueError(f"values are given by profile, {', '.join(PROFILES)}, not {sorted(self.values)}")

    def grid(self, profile: str) -> tuple[Any, ...]:
        """The values in a profile."""
        return tuple(self.values[profile] if isinstance(self.values, Mapping) else self.values)

    def design(self, profile: str) -> dict[str, Any]:
        """JSON-able; part of the study's design."""
        return {"name": self.name, "values": list(self.grid(profile)), "on": self.on, "seeds": self.seeds,
                "at": self.at, "maximise": self.maximise}  # fmt: skip

    def choose(self, scores: Mapping[Any, Sequence[float]]) -> Any:
        """The value with the best mean; a run that diverged makes its value the worst.

        >>> Tune("rate", (1, 2), on="loss").choose({1: [0.3, 0.2], 2: [0.1, float("nan")]})
        1
        """

        def mean(value: Any) -> float:
            found = [float(one) for one in scores[value]]
            if not found or not all(map(math.isfinite, found)):
                return math.inf
            return (-1.0 if self.maximise else 1.0) * sum(found) / len(found)

        best = min(scores, key=mean)
        if mean(best) == math.inf:
            raise ValueError(
                f"no value of {self.name} gave a finite {self.on}; they were {', '.join(map(str, scores))}"
            )
        return best
