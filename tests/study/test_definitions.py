"""What a study reaches by name is hashed, and nothing else is."""

import sys

import pytest

from allometry.study import definitions, sources
from allometry.study.definitions import _parsed, definitions_of, reached_of

ENTRY = """
from typing import TYPE_CHECKING
from reached import room
from reached.inner.tools import used as renamed
if TYPE_CHECKING:
    from reached.inner.tools import Typed
def trial():
    from reached.inner import tools
    return renamed() + room.public() + tools.CONSTANT
"""
TOOLS = '''
"""A module."""
import math
from reached.inner.deep import bottom
TABLE = {}
CONSTANT = 3
def enter(f):
    TABLE[f.__name__] = f
    return f
def used():
    """Words."""
    return helper(2)
def helper(x: int) -> int:
    return bottom(x)
def unused():
    return Typed
class Typed:
    pass
@enter
def listed():
    return 1
TABLE["more"] = 2
'''
DEEP = "def bottom(x):\n    return x\ndef other():\n    return 0\n"
PUBLIC = "def public():\n    return 1\ndef beside():\n    return 2\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A project of its own, whose files can be changed; returns a function that hashes it."""
    monkeypatch.setattr(sources, "ROOT", "reached")
    monkeypatch.setattr(definitions, "ROOT", "reached")
    monkeypatch.syspath_prepend(tmp_path)
    root = tmp_path / "reached"
    for folder in (root, root / "inner", root / "room"):
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (root / "room" / "__init__.py").write_text("_homes = {'public': 'file'}\n")
    texts = {"inner/tools.py": TOOLS, "inner/deep.py": DEEP, "room/file.py": PUBLIC}

    def hashes(entry=ENTRY, function=definitions_of, **changed):
        for name, text in texts.items():
            (root / name).write_text(changed.get(name.rpartition("/")[2].removesuffix(".py"), text))
        file = tmp_path / "entry.py"
        file.write_text(entry)
        for cached in (sources.origin, sources.code_digest, _parsed):
            cached.cache_clear()
        return function(file)

    yield hashes
    for name in [one for one in sys.modules if one.partition(".")[0] == "reached"]:
        del sys.modules[name]
    for cached in (sources.origin, sources.code_digest, _parsed):
        cached.cache_clear()


def test_what_is_named_is_reached_through_all_modules(package):
    reached = package(function=reached_of)
    names = {
        module: {getattr(node, "name", "") for node in nodes} - {""} for module, nodes in reached.items()
    }
    assert names == {
        "entry": {"trial"},
        "reached.inner.tools": {"used", "helper", "enter", "listed"},
        "reached.inner.deep": {"bottom"},
        "reached.room.file": {"public"},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"tools": TOOLS.replace("return Typed", "return 7")},
        {"tools": TOOLS.replace("Words.", "Other words.").replace("x: int", "x: float")},
        {"tools": TOOLS.replace("import math", "import math, json")},
        {"tools": TOOLS + "\ndef more():\n    return helper(1)\n"},
        {"deep": DEEP.replace("return 0", "return 1")},
        {"file": PUBLIC.replace("return 2", "return 3")},
    ],
)
def test_what_nothing_names_changes_no_hash(package, change):
    assert package() == package(**change)


@pytest.mark.parametrize(
    ("change", "module"),
    [
        ({"tools": TOOLS.replace("helper(2)", "helper(3)")}, "reached.inner.tools"),
        ({"tools": TOOLS.replace("CONSTANT = 3", "CONSTANT = 4")}, "reached.inner.tools"),
        ({"tools": TOOLS.replace('"more"] = 2', '"more"] = 3')}, "reached.inner.tools"),
        (
            {"tools": TOOLS.replace("listed():\n    return 1", "listed():\n    return 2")},
            "reached.inner.tools",
        ),
        ({"deep": DEEP.replace("return x", "return -x")}, "reached.inner.deep"),
        ({"file": PUBLIC.replace("return 1", "return 9")}, "reached.room.file"),
        ({"entry": ENTRY.replace("renamed() +", "renamed() -")}, "entry"),
    ],
)
def test_what_is_reached_changes_its_modules_hash(package, change, module):
    before, after = package(), package(**change)
    assert [name for name in before if before[name] != after[name]] == [module]


@pytest.mark.parametrize(
    "entry",
    [
        "from reached.inner.tools import used\ndef trial(name):\n    from reached.inner import tools\n"
        "    return getattr(tools, name)\n",
        "import reached.inner.tools as tools\nWAYS = [tools]\n",
        "from reached.inner import tools\nprint(tools.made_up_when_asked)\n",
    ],
)
def test_where_names_cannot_be_followed_all_of_a_module_counts(package, entry):
    names = {getattr(node, "name", "") for node in package(entry, reached_of)["reached.inner.tools"]}
    assert {"unused", "Typed", "used"} <= names
