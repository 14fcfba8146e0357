"""Something costly that many trials share (a base model, a teacher, a judge), made once.

The key and the code of the function that makes it decide whether it is the same; of two processes that want
it at once one waits for the other.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from allometry.study.canonical import digest
from allometry.study.sources import digest_of, modules_of


def artefact(name: str, make: Callable[..., None], *, folder: str | Path | None = None, **key: Any) -> Path:
    """The folder that holds the artefact, made if it is not there.

    Parameters
    ----------
    name : str
        In words of letters, digits and hyphens.
    make : callable
        ``make(directory, **key)``: fills the folder. Nothing of a call that fails is kept.
    folder : path, optional
        Where artefacts lie; ``.allometry/artefacts`` by default, or ``ALLOMETRY_ARTEFACTS``.
    **key
        JSON-able; with the code behind ``make`` it decides what is the same.

    Examples
    --------
    >>> import tempfile
    >>> def make(directory, size):
    ...     (directory / "numbers.txt").write_text("1 " * size)
    >>> path = artefact("numbers", make, folder=tempfile.mkdtemp(), size=3)
    >>> (path / "numbers.txt").read_text()
    '1 1 1 '
    """
    top = Path(folder or os.environ.get("ALLOMETRY_ARTEFACTS") or Path(".allometry") / "artefacts")
    file = inspect.getsourcefile(make)
    code = (
        digest_of(modules_of(file))
        if file and Path(file).is_file()
        else digest({"code": make.__code__.co_code.hex()})
    )
    place = top.resolve() / f"{name}-{digest({'name': name, 'key': key, 'code': code})[:16]}"
    if place.is_dir():
        return place
    from filelock import FileLock

    top.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):  # the kernel frees it when its holder dies
        if not place.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f"{place.name}.", dir=top))
            try:
                make(work, **key)
                os.replace(work, place)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    return place
