"""Plans, runs and records that survive: the store, the tasks that fill it, the processes that run them."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.study.cores import usable_cores
    from allometry.study.database import StoreError
    from allometry.study.execute import Event, Report, execute
    from allometry.study.store import Plan, Run, Store
    from allometry.study.task import Context, Record, Task

open_room(
    __name__,
    {
        "cores": ["usable_cores"],
        "database": ["StoreError"],
        "execute": ["Event", "Report", "execute"],
        "store": ["Plan", "Run", "Store"],
        "task": ["Context", "Record", "Task"],
    },
)

__all__ = [
    "Context", "Event", "Plan", "Record", "Report", "Run", "Store", "StoreError", "Task", "execute",
    "usable_cores",
]  # fmt: skip
