"""Runs that were made already: any trainer's logs as one table of params, tokens, flops and loss.

Nobody's log is clean, so three things are said aloud beside the table: which column was taken for what, what
was derived from what, and every row that was left out, with its reason.

- *A run* is what the run column names.  Without one it is a file's rows of the same parameters and seed, and
  of the same learning rate where the table has no step column (where it has one, the rate is a schedule).
  Laws are resampled by run, so this is what the width of an interval rests on.
- *A log or a table.*  Rows with a step are a log of training: on the way the learning rate had not decayed,
  so `Runs.final` takes the last one of each run.  Without a step every row is a result of its own.
- *Sparse logs* (validation now and then, tokens in other rows) are brought together by step; tokens and flops
  between and beyond their records go in proportion to steps.
- *One of N, D, C* that is missing follows from C = 6 N D (Kaplan et al., 2020, arXiv:2001.08361).
- *Bounded memory.*  Files are read in pieces, and 300,000 records are held.  Where there are more, runs with
  over 512 (fewer, where runs are many) keep every second, fourth ... one, the last and the one of least loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from allometry.laws.columns import SCALES as SCALES
from allometry.laws.logs import find
from allometry.laws.reading import Reader

if TYPE_CHECKING:
    import pandas

__all__ = ["Runs", "read_runs"]


@dataclass
class Runs:
    """What logs hold.  Made by `read_runs`.

    Attributes
    ----------
    table : DataFrame
        One record a row: ``run``, those of ``params``, ``tokens``, ``flops``, ``unique_tokens``, ``loss``,
        ``seed``, ``learning_rate``, ``step`` that were found or derived, and ``file``, ``row``.
    left_out : DataFrame
        ``file``, ``row`` (the first), ``count``, ``reason``, ``example``.
    columns : dict
        What each quantity was read from or derived from.
    notes : list of str
        Choices that a reader may want to see, one sentence each.
    logs : frozenset of str
        Runs whose rows are steps of training, of which only the last counts.
    """

    table: pandas.DataFrame
    left_out: pandas.DataFrame
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    logs: frozenset[str] = frozenset()

    def final(self, pick: str = "last") -> pandas.DataFrame:
        """One record a run and horizon: of a log its last (or best) record, of a table every row.

        Parameters
        ----------
        pick : {"last", "best", "all"}
            Of a log the last record, the least loss, or all records: the last is what a law is about, unless
            the learning rate is constant.
        """
        if pick not in ("last", "best", "all"):
            raise ValueError(f"pick must be 'last', 'best' or 'all', not {pick!r}")
        logged = self.table["run"].isin(self.logs).to_numpy()
        if pick == "all" or not logged.any():
            return self.table.reset_index(drop=True)
        mine = self.table[logged]
        grouped = mine.groupby("run", sort=False)
        chosen = grouped["loss"].idxmin() if pick == "best" else grouped["step"].idxmax()
        kept = self.table.index.isin(chosen) | ~logged
        return self.table[kept].reset_index(drop=True)

    def __repr__(self) -> str:
        lost = int(self.left_out["count"].sum())
        return (
            f"Runs({len(self.table)} records of {self.table['run'].nunique()} runs, {lost} left out; "
            f"columns {', '.join(self.table.columns)})"
        )


def read_runs(
    paths: str | Path | Iterable[str | Path],
    *,
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, Mapping[str, float | str]] | None = None,
) -> Runs:
    """Read logs of runs into one table.

    Parameters
    ----------
    paths : path, or several
        Files, folders (walked) or patterns.  CSV, TSV, JSON lines, JSON, Parquet; TensorBoard, W&B, MLflow,
        Hugging Face and Lightning: see `allometry.laws.logs`.  All of any length, but for a JSON document
        that is no array of records: at most 64 MiB.
    columns : mapping of quantity to column, optional
        Overrides what would be recognised: ``{"loss": "val/loss", "tokens": "step"}``.
    values : mapping of run pattern to numbers, optional
        What the logs do not say: ``{"190M-*": {"params": 190354176}}``.

    Raises
    ------
    ValueError
        No file has a loss column, no usable record is left, or a column or pattern given by name is not
        there.  The columns that were found are named.
    FileNotFoundError
        A path matches nothing.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs.csv"
    >>> _ = path.write_text("N,D,val loss\\n70M,2B,3.1\\n160M,2B,nan\\n")
    >>> runs = read_runs(path)
    >>> float(runs.table["flops"].iloc[0]), runs.left_out["reason"].tolist()
    (8.4e+17, ['loss is not finite'])
    """
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise ValueError("no path was given")
    reader = Reader(columns or {}, values or {})
    for source in find(given, lambda path, reason: reader.lost.add(path.as_posix(), None, reason)):
        reader.read(source)
    table, logs = reader.finish()
    described = {quantity: ", ".join(sources) for quantity, sources in reader.used.items()}
    return Runs(table, reader.lost.table(), described, list(reader.notes), logs)
