"""How a room opens: its public names load the file that they live in when they are first asked for.

So that entering a room costs nothing, and a name whose file needs torch says so in one sentence.

A public name may be that of its own file (``laws.fit`` lives in ``laws/fit.py``). The import system binds a
file to its package the moment it has been loaded, and the name would be the function or the file, depending
on who imported what before. Here the public name stands, in whatever order: a room is a module whose class
does not let itself be bound over. The file is imported as ever, by its whole name (``import
allometry.laws.fit``, ``from allometry.laws.fit import Fit``).
"""

import importlib
import sys
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any


class Room(ModuleType):
    """A package of which each public name is found in its file; made by `open_room`."""

    def __getattr__(self, name: str) -> Any:
        homes: dict[str, str] = vars(self)["_homes"]
        if name in homes:
            return getattr(self.__load(homes[name], name), name)
        if name in homes.values():
            return self.__load(name, name)
        raise AttributeError(
            f"module {self.__name__!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}",
            name=name, obj=self,
        )  # fmt: skip

    def __load(self, file: str, name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{self.__name__}.{file}")
        except ModuleNotFoundError as error:
            if error.name == "torch":
                from allometry.extras import need

                need("torch", extra="train", purpose=f"{self.__name__}.{name}")
            raise

    def __setattr__(self, name: str, value: Any) -> None:
        # What the import system sets when it has loaded a file; the public name of the same spelling is not
        # kept here at all, but found anew each time, so it cannot go stale when a file is loaded again.
        if vars(self)["_homes"].get(name) == name and isinstance(value, ModuleType):
            return
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted(vars(self)["_homes"])


def open_room(room: str, files: Mapping[str, Collection[str]], kind: type[Room] = Room) -> None:
    """Make a package a room; called once, at the top of its ``__init__.py``.

    Parameters
    ----------
    room : str
        The package's ``__name__``.
    files : mapping of file to names
        Which public names live in which file of the package.
    kind : type
        A kind of `Room` that can do more, such as being called.

    Raises
    ------
    ValueError
        If a name is said to live in two files.

    Examples
    --------
    >>> import allometry.laws, allometry.laws.fit
    >>> allometry.laws.fit.__module__, "fit" in dir(allometry.laws)
    ('allometry.laws.fit', True)
    """
    homes: dict[str, str] = {}
    for file, names in files.items():
        for name in names:
            if homes.setdefault(name, file) != file:
                raise ValueError(f"{room}.{name} is said to live in {homes[name]} and in {file}; choose one")
    module = sys.modules[room]
    vars(module)["_homes"] = homes
    for name in homes:  # bound before, by a package that is loaded again
        if isinstance(vars(module).get(name), ModuleType):
            del vars(module)[name]
    module.__class__ = kind
