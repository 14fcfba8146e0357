"""Verifiers: what says of a completion whether it will do, and may be wrong.

A **verifier** is any callable ``verifier(prompt, completions) -> scores``, one number a completion; a truth
value is a score of one or zero.  All completions of a prompt come at once, so that equal ones are judged
once.

- `UnitTests` runs each program in a process of its own, with a limit of time and of memory.  That protects
  from endless loops and from crashes, not from malice: programs may read files and use the network as the
  user may.  Run what you do not trust inside a container.
- `Threshold` turns any score into yes or no; `PythonParses` asks the compiler.
- A verifier that does not repeat itself makes β^K meaningless: `flip_rate` measures it first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["PythonParses", "Threshold", "UnitTests", "Verifier", "flip_rate"]

Scores = NDArray[Any]

# Limits set by the child itself, before the program: a hook between fork and exec is not safe with threads.
_LIMITS = """\
import resource, sys
for what, most in ((resource.RLIMIT_AS, {memory}), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(what, (most, most))
"""
# The program and its tests are compiled and run as one text; whoever exits early has not passed.
_PASSED = "\nimport os as _os; _os.write({channel}, {word!r})\n"


class Verifier(Protocol):
    """What judges completions of a prompt; see the module."""

    def __call__(self, prompt: Any, completions: Sequence[Any]) -> Scores: ...


class UnitTests:
    """Python programs, ``prompt + completion``, accepted where they and the tests behind them run to the end.

    Parameters
    ----------
    cases : str or sequence of str, or callable
        Python statements that raise where the program is wrong, such as ``"assert add(1, 2) == 3"``; a
        callable gives them for each prompt.
    timeout : float
        Seconds of one program with its tests. What takes longer is rejected.
    memory : int
        Bytes of address space.
    workers : int
        Programs run side by side.

    Raises
    ------
    ValueError
        There are no cases, or a limit is not positive.

    Examples
    --------
    >>> verify = UnitTests("assert double(3) == 6")
    >>> verify("def double(x):", [" return 2 * x", " return x", " while True: pass"][:2]).tolist()
    [True, False]
    """

    def __init__(
        self,
        cases: str | Sequence[str] | Callable[[Any], str | Sequence[str]],
        timeout: float = 3.0,
        *,
        memory: int = 1 << 30,
        workers: int = 1,
    ) -> None:
        if not callable(cases) and not cases:
            raise ValueError("UnitTests needs at least one case, a Python statement that raises on errors")
        for name, value in (("timeout", timeout), ("memory", memory), ("workers", workers)):
            if not value > 0:
                raise ValueError(f"{name} must be positive, got {value}")
        self.cases, self.timeout, self.memory, self.workers = cases, timeout, int(memory), int(workers)

    def __call__(self, prompt: Any, completions: Sequence[Any]) -> NDArray[np.bool_]:
        """Whether each passes, ``(n,)``."""
        cases = self.cases(prompt) if callable(self.cases) else self.cases
        tests = cases if isinstance(cases, str) else "\n".join(cases)
        if not tests.strip():
            raise ValueError(f"there are no cases for the prompt {prompt!r:.60}")
        texts = [_joined(prompt, completion) for completion in completions]
        different = list(dict.fromkeys(texts))
        with ThreadPoolExecutor(self.workers) as pool:
            passed = dict(
                zip(different, pool.map(lambda text: self._run(text, tests), different), strict=True)
            )
        return np.array([passed[text] for text in texts], dtype=bool)

    def _run(self, program: bytes, tests: str) -> bool:
        word = os.urandom(16)  # nothing that a program prints by chance or from memory
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory(prefix="unit-tests-") as folder:
            limits = Path(folder, "limits.py")
            limits.write_text(
                _LIMITS.format(memory=self.memory)
                + f"source = open({str(Path(folder, 'program.py'))!r}, 'rb').read()\n"
                + "exec(compile(source, 'program.py', 'exec'), {'__name__': 'program'})\n"
            )
            ending = "\n" + tests + _PASSED.format(channel=writing, word=word)
            Path(folder, "program.py").write_bytes(program + ending.encode())
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(limits)], cwd=folder, env={"PATH": os.defpath},
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                    pass_fds=(writing,), start_new_session=True,
                )  # fmt: skip
            finally:
                os.close(writing)
            try:
                code = process.wait(self.timeout)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)  # with whatever it has started
        os.set_blocking(reading, False)  # what it started may still hold the other end
        try:
            told = os.read(reading, 64)
        except BlockingIOError:
            told = b""
        finally:
            os.close(reading)
        return code == 0 and told == word


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Threshold:
    """Yes where a score reaches a threshold: any model's confidence as a verifier.

    Parameters
    ----------
    score : callable
        ``score(prompt, completions) -> numbers (n,)``.
    at_least : float

    Examples
    --------
    >>> long = Threshold(lambda prompt, completions: [len(one) for one in completions], 3)
    >>> long("", ["ab", "abc"]).tolist()
    [False, True]
    """

    def __init__(self, score: Callable[[Any, Sequence[Any]], Any], at_least: float) -> None:
        if np.isnan(at_least):
            raise ValueError("at_least is not a number")
        self.score, self.at_least = score, float(at_least)

    def __call__(self, prompt: Any, completions: Sequence[Any]) -> NDArray[np.bool_]:
        """Whether each reaches the threshold, ``(n,)``; a score that is not a number does not."""
        return scores_of(self.score, prompt, completions) >= self.at_least


class PythonParses:
    """Yes where ``prompt + completion`` is Python: text, or the raw bytes of it.

    Examples
    --------
    >>> PythonParses()("def f(x):", [" return x", " return return"]).tolist()
    [True, False]
    """

    def __call__(self, prompt: Any, completions: Sequence[Any]) -> NDArray[np.bool_]:
        """Whether each parses, ``(n,)``."""
        return np.array([_parses(_joined(prompt, one)) for one in completions], dtype=bool)


def _parses(source: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd escapes and the like
        try:
            compile(source, "program.py", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
            return False
    return True


def _joined(prompt: Any, completion: Any) -> bytes:
    """Both as bytes: decoding with replacements would mend what is broken."""
    parts = [part.encode() if isinstance(part, str) else bytes(part) for part in (prompt, completion)]
    return parts[0] + parts[1]


def scores_of(verifier: Verifier | Callable[..., Any], prompt: Any, completions: Sequence[Any]) -> Scores:
    """A verifier's scores as numbers ``(n,)``, refused where they are not one a completion."""
    told = verifier(prompt, completions)
    scores = np.asarray(told.detach().cpu() if hasattr(told, "detach") else told, dtype=float)
    if scores.shape != (len(completions),):
        raise ValueError(
            f"a verifier gives one score a completion, ({len(completions)},); it gave {scores.shape}"
        )
    return scores


def flip_rate(verifier: Verifier, prompt: Any, completions: Sequence[Any], repeats: int = 5) -> float:
    """How often a verifier says something else of the same completion: 0 where it repeats itself.

    The share of pairs of calls that differ in whether the score is positive, over all completions.

    >>> flip_rate(PythonParses(), "", ["x = 1", "x ="])
    0.0
    """
    if repeats < 2 or not len(completions):
        raise ValueError(f"two calls and one completion at least, got {repeats} and {len(completions)}")
    yes = np.sum([scores_of(verifier, prompt, completions) > 0 for _ in range(repeats)], axis=0)
    return float(np.mean(2 * yes * (repeats - yes) / (repeats * (repeats - 1))))
