"""Functions found by the parser, and tasks that only a working body passes."""

import ast
from pathlib import Path

import pytest

from allometry.data import completion_tasks, docstrings, functions

TEXT = '''
import os

@os.decorated
def first(a, /, b, *rest, key=1, **more):
    """One line.

    And more.
    """
    def inner(x):
        return x
    return a


class Thing:
    async def method(self, value):
        return value

if True:
    def conditional(): pass
'''


def test_every_function_is_found_with_its_place_and_arguments():
    found = {one.name: one for one in functions([("a.py", TEXT), ("broken.py", "def (")])}
    assert list(found) == ["first", "first.inner", "Thing.method", "conditional"]
    assert found["first"].arguments == ("a", "b", "key", "rest", "more")
    assert found["first"].text.startswith("@os.decorated\ndef first")
    assert found["first"].text.rstrip().endswith("return a")
    assert found["first"].header == "def first(a, /, b, *rest, key=1, **more):\n"
    assert found["Thing.method"].arguments == ("value",)
    assert [name.name for name, _ in docstrings([("a.py", TEXT)])] == ["first"]


def test_the_parser_agrees_on_the_standard_library():
    text = Path(ast.__file__).read_text()
    ours = [one.name.rpartition(".")[2] for one in functions([("ast.py", text)])]
    theirs = [
        n.name for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert sorted(ours) == sorted(theirs)


@pytest.fixture(scope="module")
def task():
    text = 'def join(left, right):\n    """Both as one."""\n    return left + right\n'
    (task,) = completion_tasks([("a.py", text)])
    return task


def test_a_task_is_the_header_and_one_line(task):
    assert task.prompt == 'def join(left, right):\n    """Both as one."""\n'
    assert task.answer == "    return left + right\n"
    assert task.arguments == ("left", "right")


def test_a_task_may_give_away_how_the_body_begins():
    text = 'def join(left, right):\n    """Both as one."""\n    return left + right\n'
    (task,) = completion_tasks([("a.py", text)], begun="    return ")
    assert task.prompt.endswith('"""\n    return ')
    assert task.passes("[left]")
    assert not task.passes("left +")


def test_a_task_may_want_a_call():
    text = 'def join(left, right):\n    """Both as one."""\n    return add(left, right)\n'
    (task,) = completion_tasks([("a.py", text)], begun="    return ", wants="call")
    assert task.passes("g(1)[0]")
    assert not task.passes("left")


@pytest.mark.parametrize(
    ("completion", "passed"),
    [
        ("    return right", True),
        ("    if left:\n        return 1\n    return f(right)\n", True),
        (b"    return left", True),
        ("    return 'left'", False),  # a string, not the argument
        ("    return", False),
        ("    left + right", False),
        ("    return left +", False),
        ("    return left\nprint(1)", False),  # goes on behind the function
        ("    def f(): return left", False),  # another's return
        ("    return lambda: left", True),
        (b"    return left # \xff", False),
        ("    return left\0", False),
        ("", False),
    ],
)
def test_what_passes(task, completion, passed):
    assert task.passes(completion) is passed


def test_tasks_leave_out_what_cannot_be_asked():
    bad = [
        'class A:\n    def f(self, x):\n        """M."""\n        return x\n',  # a method
        "def f(x):\n    return x\n",  # no docstring
        'def f():\n    """No argument."""\n    return 1\n',
        'def f(x):\n    """A blank line within."""\n    y = x\n\n    return y\n',
        'def f(x):\n    """No return."""\n    print(x)\n',
        'def f(x,\n      y):\n    """Two lines of header."""\n    return x\n',
    ]
    assert list(completion_tasks((f"{i}.py", text) for i, text in enumerate(bad))) == []


def test_the_standard_library_has_tasks_and_their_answers_pass():
    from allometry.data import StandardLibrary

    tasks = list(completion_tasks(StandardLibrary().documents("validation"), longest_prompt=120))
    assert len(tasks) >= 8
    assert all(task.passes(task.answer) for task in tasks)
    assert all(len(task.prompt.encode()) <= 120 for task in tasks)
