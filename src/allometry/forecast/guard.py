"""Runs one command so that it can be ended whole, with all that it has started, whatever happens to us.

A process of its own, a few milliseconds to start, which imports nothing of this package.  It leads a process
group that holds the command and its children, and holds one end of a pipe to the worker that wants the run:

- a byte on the pipe asks to stop: the group gets SIGTERM, and after the grace SIGKILL;
- the pipe's end means that the worker is gone, killed perhaps: the group gets SIGKILL at once, since another
  worker may begin the same run at any moment;
- should the guard itself be killed, the kernel kills the command (Linux, ``PR_SET_PDEATHSIG``).

The guard ends as the command did: with its exit code, or 128 and the number of the signal that ended it.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

NO_PROGRAM = 127  # as shells say it
_PDEATHSIG = 1


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    """``guard.py GRACE-SECONDS PROGRAM [ARGUMENT ...]``."""
    grace, command = float(sys.argv[1]), sys.argv[2:]
    # A handler, for what is ignored stays ignored in the command, and what is handled does not.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        # The only thread yet, so that a function may run between fork and exec.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", flush=True)
        os._exit(NO_PROGRAM)
    stopping = threading.Event()

    def watch() -> None:
        asked = os.read(0, 1)
        stopping.set()
        if asked:
            os.killpg(0, signal.SIGTERM)
            time.sleep(grace)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    if stopping.is_set():  # the command has gone in time; what it started may not have
        os.killpg(0, signal.SIGKILL)
    os._exit(code if code >= 0 else 128 - code)


if __name__ == "__main__":
    main()
