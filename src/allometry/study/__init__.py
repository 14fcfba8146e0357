"""Plans, runs and records that survive: the store, the tasks that fill it, the processes that run them.

The function that runs tasks is ``execute`` in ``allometry.study.execute``, which is the file's own name.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allometry.study.cores import usable_cores
    from allometry.study.database import StoreError
    from allometry.study.execute import Event, Report
    from allometry.study.store import Plan, Run, Store
    from allometry.study.task import Context, Record, Task

_PUBLIC = {
    "Context": "task",
    "Event": "execute",
    "Plan": "store",
    "Record": "task",
    "Report": "execute",
    "Run": "store",
    "Store": "store",
    "StoreError": "database",
    "Task": "task",
    "usable_cores": "cores",
}

__all__ = [
    "Context", "Event", "Plan", "Record", "Report", "Run", "Store", "StoreError", "Task",
    "usable_cores",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"allometry.study.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'allometry.study' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
