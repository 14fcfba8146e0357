"""Functions of Python source, found by the parser: their texts, their docstrings, and tasks to complete them.

The standard library's own source has more than ten thousand functions, many with a docstring, so a task with
many right answers and a cheap verifier needs no download: given a function's header and the first line of
its docstring, write a body that parses and returns something made from an argument.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["CompletionTask", "Function", "completion_tasks", "docstrings", "functions"]

Documents = Iterable[tuple[str, str]]


@dataclass(frozen=True)
class Function:
    """A function as it stands in a file.

    Attributes
    ----------
    file : str
    name : str
        Dotted with the classes and functions around it.
    arguments : tuple of str
        Names of its arguments, ``self`` and ``cls`` of methods left out.
    docstring : str
        Without its indentation; empty where there is none.
    text : str
        Its source from the first decorator to the end, indented as in the file.
    header : str
        The lines from ``def`` to the colon.
    """

    file: str
    name: str
    arguments: tuple[str, ...]
    docstring: str
    text: str
    header: str


@dataclass(frozen=True)
class CompletionTask:
    """A function to be written: what stands there, and what its author wrote.

    Attributes
    ----------
    prompt : str
        Header and the docstring's first line, from the first column, and what is given of the body.
    arguments : tuple of str
    answer : str
        The body that follows in the file.
    wants : {"argument", "call"}
        What the function must return: an expression that uses an argument, or one that calls something.

    Examples
    --------
    >>> task = CompletionTask('def double(x):\\n    \"\"\"Twice x.\"\"\"\\n', ("x",), "    return 2 * x\\n")
    >>> task.passes("    return x + x"), task.passes("    return 1"), task.passes(b"    return (x")
    (True, False, False)
    """

    prompt: str
    arguments: tuple[str, ...]
    answer: str
    wants: Literal["argument", "call"] = "argument"

    def passes(self, completion: str | bytes) -> bool:
        """Whether prompt and completion parse as Python, as one function whose body returns what is wanted.

        Bytes that are no UTF-8 do not pass: to repair them would let through what nobody could run.
        """
        try:
            body = completion.decode() if isinstance(completion, bytes) else completion
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of odd escapes and comparisons in what was sampled
                tree = ast.parse(self.prompt + body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        if len(tree.body) != 1 or not isinstance(tree.body[0], ast.FunctionDef):
            return False
        return any(
            isinstance(part, ast.Call)
            if self.wants == "call"
            else isinstance(part, ast.Name) and part.id in self.arguments
            for one in _own_nodes(tree.body[0])
            if isinstance(one, ast.Return) and one.value is not None
            for part in ast.walk(one.value)
        )


def functions(documents: Documents) -> Iterator[Function]:
    """All functions and methods of files, in the order of the text; files that do not parse are left out.

    Parameters
    ----------
    documents : iterable of (name, text)
        As `Corpus.documents` gives them.

    Examples
    --------
    >>> [one.name for one in functions([("a.py", "class A:\\n    def b(self): pass\\n")])]
    ['A.b']
    """
    for file, text in documents:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        lines = text.splitlines(keepends=True)
        for name, node in _named(tree, ""):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            colon = node.body[0].lineno - 1
            header = "".join(lines[node.lineno - 1 : max(colon, node.lineno)])
            spec = node.args
            given = [one.arg for one in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
            given += [one.arg for one in (spec.vararg, spec.kwarg) if one is not None]
            yield Function(
                file, name, tuple(one for one in given if one not in ("self", "cls")),
                ast.get_docstring(node) or "", "".join(lines[first - 1 : node.end_lineno]), header,
            )  # fmt: skip


def docstrings(documents: Documents) -> Iterator[tuple[Function, str]]:
    """Functions that have a docstring, with it.

    Examples
    --------
    >>> text = "def f():\\n    'Nothing.'\\n\\ndef g(): pass\\n"
    >>> [(one.name, said) for one, said in docstrings([("a.py", text)])]
    [('f', 'Nothing.')]
    """
    return ((one, one.docstring) for one in functions(documents) if one.docstring)


def completion_tasks(
    documents: Documents,
    *,
    longest_prompt: int = 96,
    longest_answer: int = 400,
    begun: str = "",
    wants: Literal["argument", "call"] = "argument",
) -> Iterator[CompletionTask]:
    """Tasks whose own answer passes: plain functions (no methods) with a one-line header, a docstring, and a
    body without blank lines, so that a blank line ends an answer.

    Parameters
    ----------
    documents : iterable of (name, text)
    longest_prompt, longest_answer : int
        In UTF-8 bytes.
    begun : str
        What the prompt gives away of the body, such as ``"    return "``: a line is then enough to pass.
    wants : {"argument", "call"}
        As in `CompletionTask`.

    Examples
    --------
    >>> text = 'def twice(x):\\n    \"\"\"Two of them.\"\"\"\\n    return x, x\\n'
    >>> [task.prompt for task in completion_tasks([("a.py", text)])]
    ['def twice(x):\\n    \"\"\"Two of them.\"\"\"\\n']
    """
    for one in functions(documents):
        if "." in one.name or not one.docstring or not one.arguments or one.text[:4] != "def ":
            continue
        told = one.docstring.splitlines()[0]
        prompt = f'{one.header}    """{told}"""\n'
        answer = _body_after_docstring(one.text)
        size = len((prompt + begun).encode())
        if one.header.count("\n") != 1 or size > longest_prompt or '"' in told or "\\" in told:
            continue
        if not answer or "\n\n" in answer or len(answer.encode()) > longest_answer:
            continue
        if CompletionTask(prompt, one.arguments, answer, wants).passes(answer):
            yield CompletionTask(prompt + begun, one.arguments, answer, wants)


def _named(node: ast.AST, outer: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield outer + child.name, child
            yield from _named(child, f"{outer}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _named(child, f"{outer}{child.name}.")
        else:
            yield from _named(child, outer)


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """All nodes of a function but those of functions and classes within it, whose returns are not its own."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
        waiting += [] if isinstance(node, inner) else ast.iter_child_nodes(node)


def _body_after_docstring(text: str) -> str:
    (node,) = ast.parse(text).body
    assert isinstance(node, ast.FunctionDef)
    end = node.body[0].end_lineno or 0
    return "".join(text.splitlines(keepends=True)[end:])
