"""With what a plan was made: versions of Python, of packages, and of this package's own sources."""

import functools
import hashlib
import platform
from importlib import metadata
from pathlib import Path
from typing import Any


@functools.cache
def environment() -> dict[str, Any]:
    """Python, machine and the versions of the packages on which numbers depend.

    >>> sorted(environment())
    ['machine', 'packages', 'python', 'system']
    """
    versions = {}
    for package in ("numpy", "scipy", "pandas", "torch", "SQLAlchemy", "transformers", "tokenizers"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": versions,
    }


@functools.cache
def code_version() -> str:
    """Version of allometry and the first digits of a hash over its source files.

    >>> code_version().split("+")[0] == metadata.version("allometry")
    True
    """
    root = Path(__file__).parents[1]  # the package, without importing its top, which knows of all rooms
    total = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        total.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() + b"\0")
    return f"{metadata.version('allometry')}+{total.hexdigest()[:12]}"
