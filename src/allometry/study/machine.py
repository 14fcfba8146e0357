"""What this process may use of its machine beside cores: memory, and what the processor multiplies fast.

A container's limit on memory is invisible in the machine's own numbers, as its quota of cores is
(`allometry.study.cores`): the kernel ends the process that meets it, without a word. So the limits of the
control groups are read too, version 2 (``memory.max``) and version 1 (``memory.limit_in_bytes``).

What is not known on a system is None, never a guess.
"""

import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")
_UNLIMITED = 1 << 60  # version 1 writes "no limit" as the largest multiple of a page

# Flags of /proc/cpuinfo that decide how fast matrices are multiplied, and how they are spoken of.
_FLAGS = {
    "avx2": "AVX2",
    "fma": "FMA",
    "avx512f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "sve": "SVE",
    "bf16": "BF16",
}


@dataclass(frozen=True)
class Memory:
    """Memory in bytes; None where this system does not tell.

    Attributes
    ----------
    total : int or None
        The machine's.
    available : int or None
        What can be had now without swapping.
    limit : int or None
        What the control groups grant; None also where they grant all.
    used : int or None
        What the control group with the least left to grant holds already.
    """

    total: int | None
    available: int | None
    limit: int | None
    used: int | None

    @property
    def left(self) -> int | None:
        """What this process can still take: the lesser of the machine's and the control group's.

        >>> Memory(total=100, available=60, limit=50, used=20).left
        30
        """
        bounds = [] if self.available is None else [self.available]
        if self.limit is not None:
            bounds.append(max(0, self.limit - (self.used or 0)))
        return min(bounds) if bounds else None


@dataclass(frozen=True)
class Processor:
    """The processor's own name, and those of its abilities that matter for matrix products."""

    name: str
    abilities: tuple[str, ...]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _groups(proc: Path) -> dict[str, str]:
    """The process's own control group by controller; that of version 2 under ``""``."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        _, controllers, own = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), own))
    return found


def _granted(root: Path, own: str, limit: str, used: str) -> tuple[int, int] | None:
    """The limit with the least left from the group up to the root, and what is used of it."""
    tightest = None
    folder = root / own.strip("/")
    for level in (folder, *folder.parents):
        allowed = _number(level / limit)
        if allowed is not None and allowed < _UNLIMITED:
            taken = _number(level / used) or 0
            if tightest is None or allowed - taken < tightest[0] - tightest[1]:
                tightest = allowed, taken
        if level == root:
            break
    return tightest


def memory(*, proc: Path = _PROC, cgroup: Path = _CGROUP) -> Memory:
    """Memory of the machine and what the control groups grant of it.

    Parameters
    ----------
    proc, cgroup : Path
        Where the kernel's files lie.

    Examples
    --------
    >>> found = memory()
    >>> found.total is None or found.total > 0
    True
    """
    total = available = None
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                size = int(value.split()[0]) * 1024
                total, available = (size, available) if name == "MemTotal" else (total, size)
    except (OSError, ValueError, IndexError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    groups = _groups(proc)
    granted = _granted(cgroup, groups.get("", ""), "memory.max", "memory.current") or _granted(
        cgroup / "memory", groups.get("memory", ""), "memory.limit_in_bytes", "memory.usage_in_bytes"
    )
    return Memory(total, available, *(granted or (None, None)))


def processor(*, proc: Path = _PROC) -> Processor:
    """Name and abilities of the processor, from the kernel's list where there is one.

    >>> isinstance(processor().name, str)
    True
    """
    name, flags = platform.processor() or platform.machine(), set()
    try:
        for line in (proc / "cpuinfo").read_text().splitlines():
            field, _, value = line.partition(":")
            field = field.strip()
            if field == "model name":
                name = value.strip()
            elif field in ("flags", "Features"):  # the one on x86, the other on ARM
                flags = set(value.split())
                break  # every core tells the same
    except OSError:
        if sys.platform == "darwin" and platform.machine() == "arm64":
            flags = {"asimd"}  # every Apple processor of this kind has it
    return Processor(name, tuple(spoken for flag, spoken in _FLAGS.items() if flag in flags))
