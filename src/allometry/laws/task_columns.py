"""Which columns of a log hold a task's loss and its accuracy.

Evaluation suites log a task under many names at once: ``downstream_bpb/arc_easy_test_rc_5shot_bpb`` beside
``downstream/arc_easy_test_rc_5shot_len_norm``. A task is asked for by what its columns have in common, and
one that is made of several (MMLU) by their weighted sum.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from allometry.laws.columns import normalise, shown
from allometry.laws.raw import recognised

if TYPE_CHECKING:
    import pandas

__all__ = ["Task", "task_table"]

# What a column of a task's loss, and of its accuracy, ends in; the preferred ending first.
_LOSSES = ("bpb", "bits_per_byte", "nll", "loss", "cross_entropy", "ce")
_ACCURACIES = ("len_norm", "acc_norm", "accuracy", "acc", "exact_match", "pass_at_1", "pass_1", "pass")


@dataclass(frozen=True)
class Task:
    """A task asked for: a label, and weighted names that its columns contain.

    Examples
    --------
    >>> Task.parse("mmlu=mmlu_stem_test:0.4+mmlu_other_test:0.6")
    Task(label='mmlu', parts=(('mmlu_stem_test', 0.4), ('mmlu_other_test', 0.6)))
    >>> Task.parse("hellaswag").label
    'hellaswag'
    """

    label: str
    parts: tuple[tuple[str, float], ...]

    @classmethod
    def parse(cls, text: str) -> Task:
        """``[LABEL=]NAME[:WEIGHT][+NAME[:WEIGHT]...]``; weights are equal by default.

        Raises
        ------
        ValueError
            A name is empty or a weight is no positive number.
        """
        label, mark, rest = text.partition("=")
        if not mark:
            label, rest = "", text
        parts = []
        for part in rest.split("+"):
            name, colon, weight = part.partition(":")
            try:
                value = float(weight) if colon else 1.0
            except ValueError:
                value = -1.0
            if not name.strip() or not value > 0:
                raise ValueError(
                    f"a task is [LABEL=]NAME[:WEIGHT][+NAME[:WEIGHT]...], weights positive; not {text!r}"
                )
            parts.append((name.strip(), value))
        return cls(label.strip() or parts[0][0], tuple(parts))


def task_table(table: pandas.DataFrame, task: Task | str) -> pandas.DataFrame:
    """A task's records; rows that lack one of its quantities are left out.

    Parameters
    ----------
    table : DataFrame
        From `read_table`.
    task : Task or str

    Returns
    -------
    DataFrame
        ``run``, ``params``, ``tokens``, ``task_loss``, ``accuracy``.

    Raises
    ------
    ValueError
        The table has no column of the task's loss or accuracy, no parameters or tokens, or no full row.

    Examples
    --------
    >>> import pandas
    >>> log = {"run": ["a"], "N": [1e6], "D": [2e7], "eval/arc_bpb": [1.1], "eval/arc_acc": [0.4]}
    >>> task_table(pandas.DataFrame(log), "arc").to_dict("list")
    {'run': ['a'], 'params': [1000000.0], 'tokens': [20000000.0], 'task_loss': [1.1], 'accuracy': [0.4]}
    """
    import pandas

    asked = Task.parse(task) if isinstance(task, str) else task
    names = [str(name) for name in table]
    out = pandas.DataFrame({"run": table["run"]})
    for quantity in ("params", "tokens"):
        values = recognised(table, quantity)
        if values is None:
            raise ValueError(
                f"no column of {quantity} was recognised beside the task; give it (--set 'RUN-*:params=70M') "
                "or name the column params or tokens"
            )
        out[quantity] = values
    weights = np.array([weight for _, weight in asked.parts])
    weights /= weights.sum()
    for target, endings, what in (("task_loss", _LOSSES, "loss"), ("accuracy", _ACCURACIES, "accuracy")):
        columns = [_column(names, name, endings, what) for name, _ in asked.parts]
        out[target] = sum(
            weight * pandas.to_numeric(table[column], errors="coerce")
            for weight, column in zip(weights, columns, strict=True)
        )
    full = out[np.isfinite(out.drop(columns="run").to_numpy(float)).all(axis=1)]
    if full.empty:
        raise ValueError(f"no row has params, tokens, loss and accuracy of the task {asked.label}")
    return full.reset_index(drop=True)


def _column(names: Sequence[str], part: str, endings: Sequence[str], what: str) -> str:
    mine = [name for name in names if normalise(part) in normalise(name)]
    for ending in endings:
        found = [name for name in mine if re.search(rf"(^|_){ending}$", normalise(name))]
        if found:
            return min(found, key=len)  # arc_easy before arc_easy_hard
    told = shown(mine, 6) if mine else f"no column holds {part!r}"
    raise ValueError(
        f"no column is the {what} of the task {part!r} (one ends in {', '.join(endings[:3])} ...): {told}"
    )
