"""A question about scale: arms to compare, axes to scale along, what is measured, what a paper claims.

>>> from allometry.study import Claim, Study, axis
>>> study = Study(
...     "half-power",
...     question="How fast does the mean of n draws approach its limit?",
...     arms=("mean", "median"),
...     axis=axis("draws", 10, 100, 1000),
...     measure="squared error",
...     seeds=3,
...     claim=Claim("It falls as one over n.", lambda result: result.slope("mean").within(-1.5, -0.5)),
... )
>>> @study.trial
... def trial(arm, draws, seed, profile):
...     return {"squared error": 1.0 / draws}
>>> len(study.cells("quick"))
18

A trial is a function of arm, point, seed and profile alone: it may run anywhere, in any order, again.
"""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.study.canonical import canonical
from allometry.study.claim import Claim
from allometry.study.profiles import PROFILES, Profile

if TYPE_CHECKING:
    from allometry.study.result import Result
    from allometry.study.tune import Tune

_SLUG = re.compile(r"[a-z0-9]+(?:[-/][a-z0-9]+)*")


class Arm(str):
    """An arm's name, with the settings that it carries.

    >>> arm = Arm("warm-up", {"steps": 100})
    >>> arm == "warm-up", arm["steps"]
    (True, 100)
    """

    settings: Mapping[str, Any]

    def __new__(cls, name: str, settings: Mapping[str, Any] | None = None) -> Arm:
        arm = super().__new__(cls, name)
        arm.settings = dict(settings or {})
        return arm

    def __getitem__(self, key: Any) -> Any:
        return self.settings[key] if isinstance(key, str) else super().__getitem__(key)


@dataclass(frozen=True)
class Axis:
    """What is scaled, and the values in each profile; made by `axis`."""

    name: str
    by_profile: Mapping[str, tuple[Any, ...]]
    unit: str = ""
    log: bool = True
    recorded: bool = False

    def values(self, profile: str) -> tuple[Any, ...]:
        """Values in a profile."""
        return self.by_profile[profile if profile in self.by_profile else "*"]


def axis(
    name: str,
    *values: Any,
    unit: str = "",
    log: bool = True,
    recorded: bool = False,
    **by_profile: Sequence[Any],
) -> Axis:
    """What is scaled.

    Parameters
    ----------
    name : str
    *values
        In every profile that is not named.
    unit : str
    log : bool
        Whether figures and slopes are over its logarithm.
    recorded : bool
        The trial is not called for each value: its records say at which value they were taken (horizons along
        one run, for example).
    **by_profile
        ``tiny=(…)``, ``quick=(…)``, ``full=(…)``, ``large=(…)``.

    Raises
    ------
    ValueError
        No values, equal ones, or an unknown profile.

    Examples
    --------
    >>> axis("width", 64, 128, 256, tiny=(8, 16)).values("tiny")
    (8, 16)
    """
    unknown = set(by_profile) - set(PROFILES)
    if unknown:
        raise ValueError(
            f"axis {name!r} has values for {sorted(unknown)[0]!r}; profiles are {', '.join(PROFILES)}"
        )
    table = {key: tuple(found) for key, found in by_profile.items()}
    if values or not table:
        table["*"] = tuple(values)
    for key, found in table.items():
        if not found:
            raise ValueError(
                f"axis {name!r} has no values" + ("" if key == "*" else f" in the {key} profile")
            )
        if len(set(map(str, found))) < len(found):
            raise ValueError(f"axis {name!r} names a value twice: {found}")
        if log and any(isinstance(value, int | float) and value <= 0 for value in found):
            raise ValueError(f"axis {name!r} has values that have no logarithm: {found}; pass log=False")
    return Axis(name, table, unit, log, recorded)


@dataclass(frozen=True)
class Cell:
    """One trial: an arm at a point with a seed."""

    arm: str
    point: tuple[Any, ...]
    seed: int

    def key(self, names: Sequence[str]) -> str:
        """Unique within the study's plan."""
        return "/".join(
            [self.arm, *(f"{n}={v}" for n, v in zip(names, self.point, strict=True)), f"seed={self.seed}"]
        )


@dataclass(eq=False)
class Study:
    """A question about scale; see the module's example.

    Parameters
    ----------
    name : str
        Lower-case words joined by hyphens; a part of a paper's entry is ``"<slug>/<part>"``.
    question : str
    arms : sequence of str, or mapping of str to settings
        The base first.
    axis, axes : Axis, or sequence of Axis
        The first is the one that worth refers to.
    measure, measures : str, or sequence of str
        What every trial returns; the first is what effects and worth are about.
    seeds : int
        Seeds of every cell, where a profile does not say otherwise.
    claim, claims : Claim, or sequence of Claim
    profiles : mapping
        Settings of each profile that there is, ``{"tiny": {"steps": 2, "seeds": 1}, …}``; by default all
        three that fit a laptop, with nothing but their names.
    settings : mapping
        Settings of all profiles.
    lower_is_better : bool or None
        Of the first measure. Worth and crossings are read from losses: False leaves them out, and so does
        None, for a measure that is neither good nor bad, such as how far features moved.
    data_by_arm : bool
        Whether arms are data of their own (few samples against a stream), so that none shares a batch with
        another.
    over : str, optional
        The axis that figure and table of means run along, with a panel for each place on the others; by
        default the first.
    cost : str, optional
        The column of a trial's record that holds its total cost, the unit of worth; by default the first
        axis.
    together : sequence of str
        Coordinates of which a trial takes all values at once as parallel lists ("seed", or axes' names), to
        stack them in one program; it then returns one record for each.
    exclusive : bool
        Whether a trial has the machine for itself: for those that measure time.
    processes : int
        Workers' places that one trial takes.
    threads : int
        Threads of one trial.
    requires : sequence of str
        Extras that must be installed, such as ``"hub"``.
    tune : Tune, optional
        What is chosen for each arm before the trials.
    weight : callable, optional
        ``weight(arm, *point) -> float``: relative cost of a trial, to order the work.
    version : int
        Raised, with the reason in the log, whenever a rule changes after a run.

    Raises
    ------
    ValueError
        A declaration that cannot run.
    """

    name: str
    question: str
    arms: Sequence[str] | Mapping[str, Mapping[str, Any]]
    axis: Axis | None = None
    measure: str | None = None
    seeds: int = 3
    claim: Claim | None = None
    _: Any = field(default=None, kw_only=True, repr=False)
    axes: Sequence[Axis] = field(default=(), kw_only=True)
    measures: Sequence[str] = field(default=(), kw_only=True)
    claims: Sequence[Claim] = field(default=(), kw_only=True)
    profiles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, kw_only=True)
    settings: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    lower_is_better: bool | None = field(default=True, kw_only=True)
    data_by_arm: bool = field(default=False, kw_only=True)
    over: str | None = field(default=None, kw_only=True)
    cost: str | None = field(default=None, kw_only=True)
    together: Sequence[str] = field(default=(), kw_only=True)
    exclusive: bool = field(default=False, kw_only=True)
    processes: int = field(default=1, kw_only=True)
    threads: int = field(default=1, kw_only=True)
    requires: Sequence[str] = field(default=(), kw_only=True)
    tune: Tune | None = field(default=None, kw_only=True)
    weight: Callable[..., float] | None = field(default=None, kw_only=True)
    version: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        if not _SLUG.fullmatch(self.name):
            raise ValueError(f"a study's name is lower-case words joined by hyphens, not {self.name!r}")
        carried = dict(self.arms) if isinstance(self.arms, Mapping) else {name: {} for name in self.arms}
        arms: dict[str, Any] = {name: Arm(name, settings) for name, settings in carried.items()}
        self.arms = arms
        self.axes = tuple(self.axes) or ((self.axis,) if self.axis is not None else ())
        self.measures = tuple(self.measures) or ((self.measure,) if self.measure else ())
        self.claims = tuple(self.claims) or ((self.claim,) if self.claim else ())
        self.profiles = {k: dict(v) for k, v in (self.profiles or {key: {} for key in PROFILES[:3]}).items()}
        for what, found in (("arm", self.arms), ("axis", self.axes), ("measure", self.measures)):
            if not found:
                raise ValueError(f"study {self.name!r} needs at least one {what}")
        self.axis, self.measure = self.axes[0], self.measures[0]
        unknown = set(self.profiles) - set(PROFILES)
        if unknown:
            raise ValueError(
                f"study {self.name!r} has a profile {sorted(unknown)[0]!r}; there are {', '.join(PROFILES)}"
            )
        names = [one.name for one in self.axes]
        if self.over is not None and self.over not in names:
            raise ValueError(f"over names {self.over!r}; the axes of {self.name!r} are {', '.join(names)}")
        stray = set(self.together) - {"seed", *(one.name for one in self.axes if not one.recorded)}
        if stray:
            raise ValueError(
                f"together names {sorted(stray)[0]!r}; give 'seed' or axes among {', '.join(names)}"
            )
        doubled = {"arm", "seed", "run", "status", "diverged"} & {*names, *self.measures}
        if doubled or len({*names, *self.measures}) < len(names) + len(self.measures):
            raise ValueError(
                f"axes and measures of {self.name!r} need names of their own, unlike {sorted(doubled)}"
            )
        canonical({"settings": dict(self.settings), "profiles": self.profiles}, place=f"study {self.name!r}")
        self._function: Callable[..., Any] | None = None
        self._figure: Callable[..., Any] | None = None
        self.home = _caller()

    # What the study is made of

    @property
    def base(self) -> str:
        """The arm that the others are compared with: the first."""
        return next(iter(self.arms))

    @property
    def shown(self) -> Axis:
        """The axis that figure and table of means run along."""
        return next((one for one in self.axes if one.name == self.over), self.axes[0])

    def trial(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate the function that does a trial.

        It is called as ``function(arm, *point, seed, profile)``, ``point`` being the axes' values in their
        order (without recorded ones), and returns a record: a dictionary with the measures and, if it likes,
        other columns.  Several records (one for each value of a recorded axis) come as a list or by
        ``yield``.  A run that diverged says so by ``"diverged": step`` in its record.  What a clock measured
        goes under ``"seconds"``.
        """
        self._function = function
        return function

    def figure(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate the function that draws the study's figure, ``function(result, figure)``, if the usual one
        (measure over the first axis, a line an arm) does not do."""
        self._figure = function
        return function

    def profile(self, name: str, **more: Any) -> Profile:
        """A profile as trials see it."""
        if name not in self.profiles:
            raise ValueError(f"study {self.name!r} has the profiles {', '.join(self.profiles)}, not {name!r}")
        own = dict(self.profiles[name])
        seeds = int(own.pop("seeds", self.seeds))
        return Profile(name, seeds, {**self.settings, **own}, **more)

    def points(self, profile: str) -> Iterator[tuple[Any, ...]]:
        """All points of the axes that are not recorded."""
        return itertools.product(*(one.values(profile) for one in self.axes if not one.recorded))

    def cells(self, profile: str, *, seed: int = 0) -> list[Cell]:
        """All trials of a profile; seeds count from ``seed``."""
        seeds = range(seed, seed + self.profile(profile).seeds)
        return [Cell(arm, point, s) for arm in self.arms for point in self.points(profile) for s in seeds]

    def design(self, profile: str, *, seed: int = 0) -> dict[str, Any]:
        """All that decides the numbers but the code: JSON-able, and hashed before anything runs."""
        found = self.profile(profile)
        return {
            "study": self.name, "version": self.version, "profile": profile,
            "arms": {name: dict(arm.settings) for name, arm in self.arms.items()},  # type: ignore[union-attr]
            "axes": {one.name: list(one.values(profile)) for one in self.axes},
            "measures": list(self.measures), "seeds": list(range(seed, seed + found.seeds)),
            "settings": dict(found.settings), "together": list(self.together), "threads": self.threads,
            "tune": None if self.tune is None else self.tune.design(profile),
            "claims": [one.digest for one in self.claims],
        }  # fmt: skip

    # What is done with it

    def run(self, profile: str = "quick", **options: Any) -> Result:
        """Run what is missing and return the result; options as in `allometry.study.running.run`."""
        from allometry.study.running import run

        return run(self, profile, **options)

    def result(self, profile: str = "quick", **options: Any) -> Result:
        """What is stored so far, without running anything."""
        from allometry.study.running import stored

        return stored(self, profile, **options)

    def call(self, arm: str, point: Sequence[Any], seed: Any, profile: Profile) -> Any:
        """Do one trial here and now, and return what it returns."""
        if self._function is None:
            raise ValueError(f"study {self.name!r} has no trial; decorate a function with @study.trial")
        assert isinstance(self.arms, Mapping)
        if arm not in self.arms:
            raise ValueError(f"study {self.name!r} has the arms {', '.join(self.arms)}, not {arm!r}")
        return self._function(self.arms[arm], *point, seed, profile)

    def __repr__(self) -> str:
        return (
            f"Study({self.name!r}, arms {', '.join(self.arms)}; {', '.join(one.name for one in self.axes)})"
        )


def _caller() -> tuple[str, str]:
    """Module and file of whoever declares a study, so that a worker can find it again."""
    frame = sys._getframe(1)
    while frame.f_back is not None and (
        frame.f_globals.get("__name__") == __name__ or frame.f_code.co_filename.startswith("<string")
    ):
        frame = frame.f_back
    found = frame.f_globals
    file = found.get("__file__")
    return str(found.get("__name__", "")), "" if file is None else str(Path(file).resolve())


def finite(value: Any) -> bool:
    """Whether a value is a finite number.

    >>> finite(1.0), finite(float("nan")), finite("1")
    (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
