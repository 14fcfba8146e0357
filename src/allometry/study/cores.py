"""How many cores this process may use: what the machine has, less what it has been denied.

Hyper-threads share the units that multiply matrices, so physical cores count. A scheduler's affinity mask and
a container's quota both take cores away that ``os.cpu_count`` still shows.
"""

import os
from pathlib import Path

_CPU = Path("/sys/devices/system/cpu")
_CGROUP = Path("/sys/fs/cgroup")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _physical(cpus: set[int], root: Path) -> int:
    cores = set()
    for cpu in cpus:
        package = _number(root / f"cpu{cpu}/topology/physical_package_id")
        core = _number(root / f"cpu{cpu}/topology/core_id")
        cores.add((package, core) if core is not None else ("cpu", cpu))
    return len(cores)


def _quota(root: Path, own: str) -> float:
    """Cores granted by the control groups from the process's own up to the root; infinite if unlimited."""
    granted = float("inf")
    folder = root / own.strip("/")
    for level in (folder, *folder.parents):
        try:  # version 2: "<microseconds or max> <period>"
            allowed, period = (level / "cpu.max").read_text().split()
            if allowed != "max":
                granted = min(granted, int(allowed) / int(period))
        except (OSError, ValueError):
            pass
        if level == root:
            break
    allowed_v1 = _number(root / "cpu/cpu.cfs_quota_us")
    period_v1 = _number(root / "cpu/cpu.cfs_period_us")
    if allowed_v1 and period_v1 and allowed_v1 > 0:
        granted = min(granted, allowed_v1 / period_v1)
    return granted


def usable_cores() -> int:
    """Physical cores within this process's affinity and its container's quota; at least 1.

    >>> 1 <= usable_cores() <= os.cpu_count()
    True
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = set(os.sched_getaffinity(0))
    else:
        cpus = set(range(os.cpu_count() or 1))
    own = ""
    try:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::"):
                own = line[3:]
    except OSError:
        pass
    return max(1, int(min(_physical(cpus, _CPU), _quota(_CGROUP, own))))
