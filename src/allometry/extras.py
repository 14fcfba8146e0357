"""One sentence, instead of a traceback, for a room whose extra is not installed."""

import importlib
from types import ModuleType

_INSTALLS = {
    "train": "pip install 'allometry[train]'",
    "hub": "pip install 'allometry[hub]'",
    "data": "pip install 'allometry[data]'",
    "logs": "pip install 'allometry[logs]'",
    "wandb": "pip install 'allometry[wandb]'",
    "postgres": "pip install 'allometry[postgres]'",
    "ray": "pip install 'allometry[ray]'",
}


def installed(extra: str) -> bool:
    """Whether all packages that an extra of this one names are there.

    >>> installed("no such extra")
    Traceback (most recent call last):
        ...
    ValueError: allometry has no extra 'no such extra'
    """
    from importlib import metadata

    from packaging.requirements import Requirement

    known = metadata.metadata("allometry").get_all("Provides-Extra") or []
    if extra not in known:
        raise ValueError(f"allometry has no extra {extra!r}")
    for text in metadata.requires("allometry") or []:
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            continue
        if wanted.marker.evaluate({"extra": extra}):
            try:
                metadata.version(wanted.name)
            except metadata.PackageNotFoundError:
                return False
    return True


class MissingExtra(ImportError):
    """A package that an optional part needs is not installed."""


def need(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Import ``module``, or say in one sentence which extra brings it.

    >>> need("json", extra="train", purpose="reading settings").__name__
    'json'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtra(f"{purpose} needs {module}; install it with: {_INSTALLS[extra]}") from None
