"""Plans, runs and records that survive: the store, the tasks that fill it, the processes that run them."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.study.artefact import artefact
    from allometry.study.claim import Claim, Estimate, Outcome, Test, Verdict, undecided
    from allometry.study.cores import usable_cores
    from allometry.study.database import StoreError
    from allometry.study.design import (
        Factorial,
        NextScale,
        eta_squared,
        factorial,
        grid,
        next_scale,
        one_at_a_time,
    )
    from allometry.study.execute import Event, Report, execute
    from allometry.study.profiles import Profile
    from allometry.study.result import Result
    from allometry.study.running import StudyError
    from allometry.study.store import Plan, Run, Store
    from allometry.study.study import Arm, Axis, Study, axis
    from allometry.study.task import Context, Record, Task
    from allometry.study.tune import Tune

open_room(
    __name__,
    {
        "artefact": ["artefact"],
        "claim": ["Claim", "Estimate", "Outcome", "Test", "Verdict", "undecided"],
        "cores": ["usable_cores"],
        "database": ["StoreError"],
        "design": [
            "Factorial", "NextScale", "eta_squared", "factorial", "grid", "next_scale", "one_at_a_time",
        ],
        "execute": ["Event", "Report", "execute"],
        "profiles": ["Profile"],
        "result": ["Result"],
        "running": ["StudyError"],
        "store": ["Plan", "Run", "Store"],
        "study": ["Arm", "Axis", "Study", "axis"],
        "task": ["Context", "Record", "Task"],
        "tune": ["Tune"],
    },
)  # fmt: skip

__all__ = [
    "Arm", "Axis", "Claim", "Context", "Estimate", "Event", "Factorial", "NextScale", "Outcome", "Plan",
    "Profile", "Record", "Report", "Result", "Run", "Store", "StoreError", "Study", "StudyError", "Task",
    "Test", "Tune", "Verdict", "artefact", "axis", "eta_squared", "execute", "factorial", "grid",
    "next_scale", "one_at_a_time", "undecided", "usable_cores",
]  # fmt: skip
