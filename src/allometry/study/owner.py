"""Who holds a run: a process, named so that it cannot be mistaken for another.

A process number is used again after its process has gone, and two containers may share a host name. So an
owner is (machine, process number, birth): the machine is the host name, the kernel's boot and the namespace
in which process numbers count; birth is the kernel's start time of the process. On the owner's own machine
the kernel says whether it lives, and no clock is asked; only for an owner elsewhere does its heartbeat count.
"""

import functools
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@functools.cache
def _machine() -> str:
    parts = [socket.gethostname()]
    if sys.platform == "linux":
        try:
            parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
            parts.append(os.readlink("/proc/self/ns/pid"))
        except OSError:  # a hardened container hides them; the host name must do
            pass
    return " ".join(parts)


def _birth(pid: int) -> str | None:
    """Start time of a living process in the kernel's own words; None if there is no such process."""
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the command in brackets and may hold anything: fields are counted after it.
        fields = stat[stat.rindex(")") + 2 :].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie trains nothing
    answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return answer.stdout.strip() or None


@dataclass(frozen=True)
class Owner:
    """A process that may hold runs.

    Attributes
    ----------
    machine : str
        Host name, boot and process namespace.
    pid : int
        Process number there.
    birth : str
        When the process began, as the kernel tells it; empty where it does not tell.
    """

    machine: str
    pid: int
    birth: str

    @classmethod
    def of(cls, pid: int) -> "Owner":
        """The owner that process ``pid`` of this machine is.

        >>> Owner.of(os.getpid()) == Owner.here()
        True
        """
        return cls(_machine(), pid, "" if sys.platform == "win32" else _birth(pid) or "")

    @classmethod
    def here(cls) -> "Owner":
        """This process.

        >>> Owner.here().alive()
        True
        """
        return cls.of(os.getpid())

    def alive(self) -> bool | None:
        """Whether the process lives; None where this machine cannot know."""
        if self.machine != _machine() or not self.birth:
            return None
        return _birth(self.pid) == self.birth
