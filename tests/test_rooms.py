"""Rooms: each public name is itself in whatever order things are imported, and costs nothing before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import allometry
from allometry.extras import MissingExtra
from allometry.rooms import open_room

ROOMS = ["laws", "measure", "data", "models", "optim", "train", "init", "grow", "quant", "infer", "study",
         "forecast"]  # fmt: skip
TORCH = {"measure", "models", "optim", "train", "init", "grow", "quant", "infer"}


def room_of(name):
    if name in TORCH:
        pytest.importorskip("torch")
    return importlib.import_module(f"allometry.{name}")


def shadowed():
    """Public names that are also the name of their file."""
    for name in ROOMS:
        homes = vars(importlib.import_module(f"allometry.{name}"))["_homes"]
        yield from ((name, public) for public, file in homes.items() if public == file)


@pytest.mark.parametrize("name", ROOMS)
def test_a_room_gives_what_it_lists(name):
    room = room_of(name)
    assert dir(room) == sorted(room.__all__)
    for public in room.__all__:
        assert not isinstance(getattr(room, public), type(sys))
    with pytest.raises(AttributeError, match="it has"):
        room.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", ROOMS)
def test_what_a_type_checker_sees_is_what_there_is(name):
    room = importlib.import_module(f"allometry.{name}")
    seen = {}
    for node in ast.walk(ast.parse(Path(room.__file__).read_text())):
        if isinstance(node, ast.If):
            for found in node.body:
                seen |= {alias.name: found.module.rpartition(".")[2] for alias in found.names}
    assert seen == vars(room)["_homes"]
    assert sorted(seen) == sorted(room.__all__)


def test_the_known_names_that_are_also_files_are_looked_at():
    assert {("laws", "fit"), ("laws", "published"), ("study", "execute"), ("forecast", "forecast"),
            ("models", "attention"), ("measure", "complexity")} <= set(shadowed())  # fmt: skip


@pytest.mark.parametrize(("name", "public"), list(shadowed()))
def test_a_file_that_is_loaded_does_not_stand_before_the_name_it_shares(name, public, monkeypatch):
    room, whole = room_of(name), f"allometry.{name}.{public}"
    before = getattr(room, public)
    assert callable(before)
    with monkeypatch.context() as patched:
        patched.delitem(sys.modules, whole)
        file = importlib.import_module(whole)  # loaded anew: the import system binds it to the room
        assert getattr(room, public) is getattr(file, public)
        assert getattr(room, public) is not before
    assert getattr(room, public) is before
    setattr(room, public, sys.modules[whole])  # what the import system does, and test collectors too
    assert getattr(room, public) is before


@pytest.fixture
def house(tmp_path, monkeypatch):
    """Makes a package of its own: a room with a file ``job`` that holds ``job`` and ``Other``."""
    monkeypatch.syspath_prepend(tmp_path)

    def make(name, files, table, before=""):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").write_text(
            f"{before}\nfrom allometry.rooms import open_room\nopen_room(__name__, {table!r})\n"
        )
        for file, text in files.items():
            (folder / f"{file}.py").write_text(text)
        importlib.invalidate_caches()
        monkeypatch.setitem(sys.modules, name, None)  # so that it is taken out again at the end
        del sys.modules[name]

    return make


JOB = {"job": "def job():\n    return 1\n\nclass Other:\n    pass\n", "silent": "word = 'hush'\n"}
TABLE = {"job": ["job", "Other"], "silent": ["word"]}

ORDERS = {
    "name first": ["from {0} import job", "import {0}.job", "from {0}.job import Other"],
    "file first": ["import {0}.job", "from {0} import job"],
    "from the file first": ["from {0}.job import Other", "import {0}; job = {0}.job"],
    "file by name": ["import importlib; importlib.import_module('{0}.job')", "import {0}; job = {0}.job"],
    "file loaded again": ["import importlib, sys, {0}.job", "importlib.reload(sys.modules['{0}.job'])",
                          "from {0} import job"],
    "room loaded again": ["import importlib, {0}.job", "importlib.reload({0})", "from {0} import job"],
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_the_name_is_the_function_in_every_order(house, order):
    name = "house_" + order.replace(" ", "_")
    house(name, JOB, TABLE)
    space = {}
    for line in ORDERS[order]:
        exec(line.format(name), space)
    assert space["job"]() == 1
    room, file = sys.modules[name], sys.modules[f"{name}.job"]
    assert room.job() == 1
    assert file.Other is room.Other
    assert room.silent.word == "hush"  # a file that shares its name with nothing is there as ever


def test_a_file_bound_before_the_room_opened_gives_way_too(house):
    house("house_late", JOB, TABLE, before="import house_late.job")
    assert importlib.import_module("house_late").job() == 1


def test_a_room_without_torch_says_how_to_get_it(house, monkeypatch):
    house("house_torch", {"net": "import torch\nclass Net:\n    pass\n"}, {"net": ["Net"]})
    monkeypatch.setitem(sys.modules, "torch", None)
    room = importlib.import_module("house_torch")
    with pytest.raises(MissingExtra, match=r"house_torch\.Net needs torch; .*allometry\[train\]"):
        room.Net  # noqa: B018


def test_a_package_that_is_missing_otherwise_is_named_as_it_is(house):
    house("house_other", {"net": "import no_such_package_anywhere\n"}, {"net": ["Net"]})
    with pytest.raises(ModuleNotFoundError, match="no_such_package_anywhere"):
        importlib.import_module("house_other").Net  # noqa: B018


def test_a_name_has_one_home():
    with pytest.raises(ValueError, match=r"allometry\.word is said to live in a and in b"):
        open_room("allometry", {"a": ["word"], "b": ["word"]})
    assert type(allometry) is type(sys)


def test_entering_all_rooms_loads_nothing_heavy():
    program = (
        f"import sys, importlib\nfor room in {ROOMS!r}:\n    importlib.import_module('allometry.' + room)\n"
        "print({'torch', 'numpy', 'scipy', 'pandas', 'sqlalchemy', 'matplotlib'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
