"""Programs from examples, with every truth known: Boolean functions of a few variables, written in postfix.

A task hides a truth table. The model reads some of its rows and writes a program; tests look at some rows,
the reference at all of them, so that tests which miss errors, and how often they do, are exact facts here.

* A row is one token, which says the inputs and the output; a program is variables, ``not``, ``and``, ``or``
  and ``xor`` in postfix, then ``end``.
* Truth tables are integers, bit i for row i, and whole batches of programs are run at once, a stack machine
  of bit operations over the positions.
* Tasks are what random programs compute; different programs for one table are all right.
* Rows stand in a random order; the model reads the first of them, and tests of m rows are the first m, so
  that tests of different sizes contain one another.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["BooleanPrograms", "BooleanTasks"]

IGNORED = -100  # targets that no loss counts, as torch has it
_OPERATORS = ("not", "and", "or", "xor")


class BooleanTasks(NamedTuple):
    """Hidden truth tables and the order in which their rows are shown.

    Attributes
    ----------
    tables : Tensor, int64, shape (N,)
        Bit i is the output at row i; variable v is bit v of i.
    order : Tensor, int64, shape (N, 2 ** variables)
    """

    tables: Tensor
    order: Tensor


class BooleanPrograms:
    """Tasks of Boolean program synthesis; also training batches without end, addressed by step.

    Parameters
    ----------
    variables : int
        2 to 5; a table has ``2 ** variables`` rows.
    rows : int
        Rows that the model reads.
    leaves : int
        Variables that a random program mentions at most, counted with repeats.
    longest : int
        Tokens of a program at most, without ``end``.
    batch : int
        Programs in a training batch.
    seed : int
        Of the training batches; batch and step decide the rest.

    Attributes
    ----------
    vocabulary : list of str
    start, end : int
        Tokens that begin and end a program; ``end`` also fills shorter programs up.
    prompt_length, context : int
        Tokens of a prompt, and of a prompt with the longest program.

    Raises
    ------
    ValueError
        A size is out of range.

    Examples
    --------
    >>> programs = BooleanPrograms()
    >>> inputs, targets = programs.batch(0)
    >>> tuple(inputs.shape), programs.vocabulary[-8:]
    ((64, 18), ['x1', 'x2', 'x3', 'x4', 'not', 'and', 'or', 'xor'])
    >>> tables, valid = programs.run(programs.read("x1 x2 and not")[None])
    >>> bin(int(tables[0])), bool(valid[0])
    ('0b111011101110111', True)
    """

    def __init__(
        self,
        variables: int = 4,
        rows: int = 6,
        *,
        leaves: int = 4,
        longest: int = 11,
        batch: int = 64,
        seed: int = 0,
    ) -> None:
        if not 2 <= variables <= 5:
            raise ValueError(f"variables must be 2 to 5, got {variables}")
        self.table_rows = 2**variables
        if not 1 <= rows <= self.table_rows:
            raise ValueError(f"rows must be 1 to {self.table_rows}, the rows of a table, got {rows}")
        if leaves < 1 or longest < 2 * leaves - 1:
            raise ValueError(
                f"{leaves} leaves need programs of {2 * leaves - 1} tokens; longest is {longest}"
            )
        if batch < 1:
            raise ValueError(f"batch must be at least 1, got {batch}")
        self.variables, self.rows, self.leaves, self.longest = variables, rows, leaves, longest
        self.batch_size, self.seed = batch, int(seed)
        shown = [f"{i:0{variables}b}={value}" for i in range(self.table_rows) for value in (0, 1)]
        names = [f"x{v + 1}" for v in range(variables)]
        self.vocabulary = [*shown, "start", "end", *names, *_OPERATORS]
        self.start, self.end = 2 * self.table_rows, 2 * self.table_rows + 1
        self._variable, self._not = self.end + 1, self.end + 1 + variables
        self.prompt_length = rows + 1
        self.context = self.prompt_length + longest + 1
        self._full = 2**self.table_rows - 1
        bits = torch.arange(self.table_rows)
        columns = (bits[None, :] >> torch.arange(variables)[:, None]) & 1  # (variables, rows)
        self._columns = (columns << bits).sum(dim=1)

    # --- programs ---

    def programs(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` random programs ``(n, longest)``, filled up with ``end``.

        The number of leaves is uniform from 1 to ``leaves``; wherever both may come next, a variable or an
        operator of two, they are equally likely; ``not`` follows what is no ``not`` one time in five.
        """
        left = torch.randint(1, self.leaves + 1, (n,), generator=generator)
        height = torch.zeros(n, dtype=torch.long)
        plain = torch.zeros(n, dtype=torch.bool)  # whether the last token may be negated
        made = torch.full((n, self.longest), self.end)
        for at in range(self.longest):
            chance = torch.rand(2, n, generator=generator)
            variable = torch.randint(self._variable, self._not, (n,), generator=generator)
            binary = torch.randint(self._not + 1, self._not + 4, (n,), generator=generator)
            over = (left == 0) & (height == 1)
            needed = 2 * left + height - 1  # tokens that are still to come without any not
            negate = plain & (chance[0] < 0.2) & (at + 1 + needed <= self.longest)
            leaf = (left > 0) & ((height < 2) | (chance[1] < 0.5))
            over &= ~negate
            token = torch.where(leaf, variable, binary)
            token = torch.where(negate, torch.full_like(token, self._not), token)
            made[:, at] = torch.where(over, made[:, at], token)
            step = torch.where(leaf, 1, -1)
            moved = ~negate & ~over
            height = torch.where(moved, height + step, height)
            left = torch.where(moved & leaf, left - 1, left)
            plain = torch.where(over | negate, torch.zeros_like(plain), torch.ones_like(plain))
        return made

    def run(self, programs: Tensor) -> tuple[Tensor, Tensor]:
        """Truth tables ``(...)`` of programs ``(..., L)``, and which of them are well formed ``(...)``.

        A program ends before its first ``end``; one that is not well formed has the table 0.
        """
        shape = programs.shape[:-1]
        tokens = programs.reshape(-1, programs.shape[-1])
        count, length = tokens.shape
        columns = self._columns.to(tokens.device)
        stack = torch.zeros(count, length + 2, dtype=torch.long, device=tokens.device)
        height = torch.zeros(count, 1, dtype=torch.long, device=tokens.device)
        valid = torch.ones(count, 1, dtype=torch.bool, device=tokens.device)
        going = torch.ones(count, 1, dtype=torch.bool, device=tokens.device)
        for at in range(length):
            token = tokens[:, at : at + 1]
            going = going & (token != self.end)
            kind = token - self._not  # negative for variables; 0 not, 1 and, 2 or, 3 xor
            pushes, unary = (token >= self._variable) & (kind < 0), kind == 0
            needs = torch.where(pushes, 0, torch.where(unary, 1, 2))
            valid &= ~going | ((token >= self._variable) & (height >= needs))
            top = stack.gather(1, (height - 1).clamp(min=0))
            under = stack.gather(1, (height - 2).clamp(min=0))
            value = columns[(token - self._variable).clamp(0, self.variables - 1)]
            value = torch.where(kind == 0, top ^ self._full, value)
            value = torch.where(kind == 1, top & under, value)
            value = torch.where(kind == 2, top | under, value)
            value = torch.where(kind == 3, top ^ under, value)
            act = going & valid
            height = torch.where(act, height - needs + 1, height)
            place = (height - 1).clamp(min=0)
            stack.scatter_(1, place, torch.where(act, value, stack.gather(1, place)))
        valid &= height == 1
        return (torch.where(valid, stack[:, :1], 0)).reshape(shape), valid.reshape(shape)

    def read(self, text: str) -> Tensor:
        """Tokens ``(L,)`` of a program written in words.

        Raises
        ------
        ValueError
            A word is not in the vocabulary.
        """
        words = text.split()
        unknown = [word for word in words if word not in self.vocabulary]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no word of a program; there are {self.vocabulary[-8:]}")
        return torch.tensor([self.vocabulary.index(word) for word in words], dtype=torch.long)

    def write(self, program: Tensor) -> str:
        """A program ``(L,)`` in words, without what follows its end.

        >>> programs = BooleanPrograms()
        >>> programs.write(programs.read("x1 x2 xor end end"))
        'x1 x2 xor'
        """
        return " ".join(self.vocabulary[int(token)] for token in program).split(" end")[0]

    # --- tasks ---

    def tasks(self, n: int, generator: torch.Generator) -> BooleanTasks:
        """``n`` tasks: the tables of random programs, their rows in random order."""
        tables, _ = self.run(self.programs(n, generator))
        return BooleanTasks(tables, self._order(n, generator))

    def _order(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, self.table_rows, generator=generator).argsort(dim=1)

    def prompts(self, tasks: BooleanTasks) -> Tensor:
        """What the model reads ``(N, prompt_length)``: the first rows with their outputs, then ``start``."""
        shown = tasks.order[:, : self.rows]
        outputs = (tasks.tables[:, None] >> shown) & 1
        start = torch.full((len(shown), 1), self.start, device=shown.device)
        return torch.cat([2 * shown + outputs, start], dim=1)

    def passes(self, tasks: BooleanTasks, programs: Tensor, rows: int | None = None) -> Tensor:
        """Whether programs ``(N, ..., L)`` agree with their task's table on its first ``rows`` rows.

        All rows, the reference, by default. Returns bool ``(N, ...)``.
        """
        count = self.table_rows if rows is None else rows
        if not 0 <= count <= self.table_rows:
            raise ValueError(f"rows must be 0 to {self.table_rows}, got {rows}")
        tables, valid = self.run(programs)
        looked_at = (1 << tasks.order[:, :count]).sum(dim=1)
        several = (-1, *[1] * (tables.ndim - 1))
        wrong = (tables ^ tasks.tables.view(several)) & looked_at.view(several)
        return valid & (wrong == 0)

    # --- training ---

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``(batch, context - 1)`` of one step.

        Targets within the prompt, and those after a program's end, are ignored (-100).
        """
        digest = hashlib.sha256(f"boolean programs {self.seed} {step}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        programs = self.programs(self.batch_size, generator)
        tables, _ = self.run(programs)
        prompts = self.prompts(BooleanTasks(tables, self._order(self.batch_size, generator)))
        ends = torch.full((self.batch_size, 1), self.end)
        tokens = torch.cat([prompts, programs, ends], dim=1)
        targets = tokens[:, 1:].clone()
        targets[:, : self.prompt_length - 1] = IGNORED
        length = (programs != self.end).sum(dim=1, keepdim=True)
        after = torch.arange(self.context - 1)[None, :] > self.prompt_length - 1 + length
        targets[after] = IGNORED
        return tokens[:, :-1], targets
