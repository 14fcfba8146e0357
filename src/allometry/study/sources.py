"""Which code stands behind a number: the modules that a study imports, and one hash of what they do.

The hash is of the parsed code without its layout, comments and docstrings, and of the modules that the study
reaches through imports, not of the project: a new page of the guide is no reason to run a plan again, a
changed optimizer is. What makes evidence stale is finer (:mod:`allometry.study.definitions`).
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = __name__.partition(".")[0]
_MACHINERY = tuple(  # what carries and shows, and changes no number
    f"{ROOT}.{part}" for part in ("study", "forecast", "web", "cli", "show", "rooms", "extras")
)


def modules_of(file: str | Path, name: str = "") -> dict[str, str]:
    """Modules of this project behind a file, itself included, with the hash of each one's code.

    Parameters
    ----------
    file : path
        Of the study.
    name : str
        Its module's name, for relative imports.

    Examples
    --------
    >>> from allometry.study import tune
    >>> list(modules_of(tune.__file__, "allometry.study.tune"))
    ['allometry.study.tune']
    """
    first = name or Path(file).stem
    found = {first: code_digest(str(Path(file).resolve()))}
    todo = [Path(file).resolve()]
    while todo:
        for module in _imports(str(todo.pop())):
            if module in found or not counts(module):
                continue
            place = origin(module)
            if place is not None:
                found[module] = code_digest(place)
                todo.append(Path(place))
    return dict(sorted(found.items()))


def counts(module: str) -> bool:
    """Whether a module can change a study's numbers; a room's table of public names does not.

    >>> counts("allometry.optim.adamw"), counts("allometry.optim"), counts("allometry.show.text")
    (True, False, False)
    """
    table = module.startswith(f"{ROOT}.") and module.count(".") == 1
    return not table and not module.startswith(_MACHINERY)


def digest_of(modules: dict[str, str]) -> str:
    """One hash of many; renaming the study's own file does not change it."""
    return hashlib.sha256("\n".join(sorted(modules.values())).encode()).hexdigest()


@functools.cache
def code_digest(file: str) -> str:
    """Hash of a file's code without comments, layout and docstrings."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
                node.body = body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@functools.cache
def origin(module: str) -> str | None:
    """The file of a module, where it is a Python file; found without importing what it lies in, or torch.

    >>> origin("allometry.optim.adamw").endswith("adamw.py"), origin("allometry.optim.adamw.AdamW")
    (True, None)
    """
    root, *parts = module.split(".")
    try:
        spec = importlib.util.find_spec(root)
    except (ImportError, ValueError):
        return None
    if spec is None or not parts:
        return spec.origin if spec is not None and str(spec.origin).endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *parts)
        for file in (place / "__init__.py", place.with_name(f"{place.name}.py")):
            if file.is_file():
                return str(file)
    return None


@functools.cache
def _imports(file: str) -> tuple[str, ...]:
    """Names of this project's modules that a file imports, at its top or within functions."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    found: list[str] = []
    rooms: dict[str, str] = {}  # names that stand for packages whose public names are loaded lazily
    for node in running(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == ROOT:
                    found.append(alias.name)
                    rooms[alias.asname or alias.name] = alias.name
        elif (
            isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] == ROOT
        ):
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                if origin(whole) is not None and public_home(node.module, alias.name) is None:
                    found.append(whole)
                    rooms[alias.asname or alias.name] = whole
                else:
                    found.append(public_home(node.module, alias.name) or node.module)
    for node in running(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            place = rooms.get(ast.unparse(node.value))
            if place is not None:
                inner = f"{place}.{node.attr}"
                found.append(public_home(place, node.attr) or (inner if origin(inner) else place))
    return tuple(dict.fromkeys(found))


def running(tree: ast.AST, *, deep: bool = True) -> Iterator[ast.AST]:
    """All nodes below that are ever executed, or the next ones alone: not what only type checkers read."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        if deep:
            yield from running(node)


def public_home(package: str, name: str) -> str | None:
    """The module that defines a package's lazily loaded public name."""
    module: ModuleType | None = sys.modules.get(package)
    if module is None:
        place = origin(package)
        if place is None or not place.endswith("__init__.py"):
            return None
        module = importlib.import_module(package)
    inner = vars(module).get("_homes", {}).get(name)
    return None if inner is None else f"{package}.{inner}"
