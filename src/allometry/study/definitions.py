"""Which definitions stand behind a number: those that a study's file reaches by name, through all modules.

A module serves many studies. Were one hash of it to stand behind each of them, a law or an optimizer that
is added beside theirs would make the evidence of all stale. So what is hashed is what is reached: the
study's own file whole; of every other module the top-level functions, classes and assignments that something
reached names, and whatever it executes when it is loaded.

Where names cannot be followed (a module handed on as a value, an attribute that it makes up) all of the
module counts: what is reached is never too little, as far as names tell; what is found by a string is not
seen. Layout, comments, docstrings and annotations of parameters change nothing.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from allometry.study.sources import ROOT, counts, origin, public_home, running

ALL = "*"


@dataclass(frozen=True)
class Reference:
    """A name in a module; without a name the module itself."""

    module: str
    name: str = ""


@dataclass
class Parsed:
    """A module's top level.

    Attributes
    ----------
    nodes : list
        All of it but imports and docstrings, in order.
    defined : dict of name to places in ``nodes``
    executed : list of places in ``nodes``
        What is neither a definition nor an assignment to a name, and what this project's code decorates.
    imports : dict of name to Reference
    """

    nodes: list[ast.AST] = field(default_factory=list)
    defined: dict[str, list[int]] = field(default_factory=dict)
    executed: list[int] = field(default_factory=list)
    imports: dict[str, Reference] = field(default_factory=dict)


def definitions_of(file: str | Path, name: str = "") -> dict[str, str]:
    """Modules of this project behind a file, itself included, with the hash of what is reached in each.

    Parameters
    ----------
    file : path
        Of the study.
    name : str
        Its module's name.

    Examples
    --------
    >>> from allometry.study import tune
    >>> list(definitions_of(tune.__file__, "allometry.study.tune"))
    ['allometry.study.tune']
    """
    return {module: _digest(nodes) for module, nodes in reached_of(file, name).items()}


def reached_of(file: str | Path, name: str = "") -> dict[str, list[ast.AST]]:
    """Top-level statements that a file reaches, by module, in their order; as `definitions_of`."""
    own = name or Path(file).stem
    files = {own: str(Path(file).resolve())}
    reached: dict[str, set[int]] = {}
    seen: set[Reference] = set()
    todo = [Reference(own, ALL)]
    while todo:
        wanted = todo.pop()
        if wanted in seen or (wanted.module != own and not counts(wanted.module)):
            continue
        seen.add(wanted)
        place = files.get(wanted.module) or origin(wanted.module)
        if place is None:
            continue
        files[wanted.module] = place
        parsed = _parsed(place)
        fresh = set(parsed.executed) if wanted.module not in reached else set()
        if wanted.name == ALL or (wanted.name not in parsed.defined and wanted.name not in parsed.imports):
            fresh |= set(range(len(parsed.nodes)))  # also what is made up, or asked for as a whole
        elif wanted.name in parsed.imports:
            todo.append(parsed.imports[wanted.name])
        fresh |= set(parsed.defined.get(wanted.name, ()))
        known = reached.setdefault(wanted.module, set())
        for index in fresh - known:
            known.add(index)
            todo += _used(parsed.nodes[index], parsed, wanted.module)
    return {
        module: [_parsed(files[module]).nodes[place] for place in sorted(places)]
        for module, places in sorted(reached.items())
    }


def _digest(nodes: list[ast.AST]) -> str:
    return hashlib.sha256("\n".join(map(ast.dump, nodes)).encode()).hexdigest()


@functools.cache
def _parsed(file: str) -> Parsed:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.arg):
            node.annotation = None
    found = Parsed()
    statements = [one for one in running(tree, deep=False) if not _never_counts(one)]
    for node in statements:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.imports |= _bound(node)
            continue
        names = _names_defined(node)
        place = len(found.nodes)
        found.nodes.append(node)
        for name in names:
            found.defined.setdefault(name, []).append(place)
        inner = [one for one in running(node) if isinstance(one, ast.Import | ast.ImportFrom)]
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for one in inner:  # under `try` or `if`
                found.imports |= _bound(one)
        if not names:
            found.executed.append(place)
    for place, node in enumerate(found.nodes):
        for one in getattr(node, "decorator_list", ()):
            base: ast.AST = one
            while isinstance(base, ast.Call | ast.Attribute):
                base = base.func if isinstance(base, ast.Call) else base.value
            if isinstance(base, ast.Name) and (base.id in found.imports or base.id in found.defined):
                found.executed.append(place)  # it may enter itself into a table of ours
    return found


def _never_counts(node: ast.AST) -> bool:
    """``__all__`` lists names and computes nothing."""
    return isinstance(node, ast.Assign) and "__all__" in _names_defined(node)


def _names_defined(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    flat = [one for target in targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [one.id for one in flat if isinstance(one, ast.Name)] if all(
        isinstance(one, ast.Name) for one in flat
    ) else []  # fmt: skip


def _bound(node: ast.Import | ast.ImportFrom) -> dict[str, Reference]:
    """What an import of this project's modules binds."""
    found = {}
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name.partition(".")[0] == ROOT:
                found[alias.asname or ROOT] = Reference(alias.name if alias.asname else ROOT)
    elif node.level == 0 and node.module is not None and node.module.partition(".")[0] == ROOT:
        for alias in node.names:
            found[alias.asname or alias.name] = _attribute(Reference(node.module), alias.name)
    return found


def _attribute(base: Reference, name: str) -> Reference:
    """An attribute of a module: a room's public name where it lives, a module within, or a definition."""
    home = public_home(base.module, name)
    if home is not None:
        return Reference(home, name)
    whole = f"{base.module}.{name}"
    return Reference(whole) if origin(whole) is not None else Reference(base.module, name)


def _used(node: ast.AST, parsed: Parsed, module: str) -> Iterator[Reference]:
    """What a top-level node names: definitions of its own module, and what was imported there or within."""
    imports = dict(parsed.imports)
    inside = [node, *running(node)]
    for one in inside:
        if isinstance(one, ast.Import | ast.ImportFrom):
            bound = _bound(one)
            imports |= bound
            yield from (found for found in bound.values() if found.name)

    def resolve(one: ast.AST) -> Reference | None:
        if isinstance(one, ast.Name):
            if one.id in imports:
                return imports[one.id]
            return Reference(module, one.id) if one.id in parsed.defined else None
        if isinstance(one, ast.Attribute):
            base = resolve(one.value)
            return _attribute(base, one.attr) if base is not None and not base.name else None
        return None

    followed = {  # modules of which an attribute is asked, and so not all
        id(one.value) for one in inside if isinstance(one, ast.Attribute)
    }
    for one in inside:
        found = resolve(one)
        if found is None:
            continue
        if found.name:
            yield found
        elif id(one) not in followed:
            yield Reference(found.module, ALL)
