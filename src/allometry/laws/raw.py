"""Every column of a log as a table, for laws that read columns of their own.

`read_runs` keeps the dozen quantities that laws of loss are about; here nothing is chosen and nothing dropped
but what is no table at all.  Each row keeps the run and the place that it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.laws.columns import GOOD, candidates, numbers
from allometry.laws.logs import find, parts

if TYPE_CHECKING:
    import pandas

__all__ = ["read_table", "recognised"]

_ROWS = 2_000_000  # what is held at most: all columns of a table of any length would not be bounded


def read_table(
    paths: str | Path | Iterable[str | Path],
    *,
    values: Mapping[str, Mapping[str, float | str]] | None = None,
) -> pandas.DataFrame:
    """All columns of tables and logs, rows in order, with ``run`` (the file's, where no column names it).

    Parameters
    ----------
    paths : path, or several
        As in `read_runs`.
    values : mapping of run pattern to columns, optional
        What the logs do not say: ``{"190M-*": {"params": 190354176}}``.

    Returns
    -------
    DataFrame
        Columns whose cells are all numbers (``70M`` is one) or blank as floats, the rest as text.

    Raises
    ------
    ValueError
        There are no rows, too many, or a pattern matches no run.
    FileNotFoundError
        A path matches nothing.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "small.csv"
    >>> _ = path.write_text("N,quality,error\\n70M,high,0.5\\n160M,low,\\n")
    >>> table = read_table(path)
    >>> table["N"].tolist(), table["quality"].tolist(), table["run"].tolist()
    ([70000000.0, 160000000.0], ['high', 'low'], ['small', 'small'])
    """
    import pandas

    given = [paths] if isinstance(paths, str | Path) else list(paths)
    if not given:
        raise ValueError("no path was given")
    refused: list[str] = []
    frames: list[pandas.DataFrame] = []
    rows = 0
    for source in find(given, lambda path, reason: refused.append(f"{path.name}: {reason}")):
        for part in parts(source, lambda row, reason, text: None):
            rows += len(part.rows)
            if rows > _ROWS:
                raise ValueError(
                    f"more than {_ROWS} rows: keep every so many, or only the columns of the law"
                )
            frame = pandas.DataFrame(part.take([], list(part.columns)))
            for name in frame:
                frame[name] = _cells(frame[name], part.comma)
            names = candidates([str(name) for name in frame]).get("run", [])
            frame["run"] = frame[names[0].source].astype(str) if names else _stem(source.run)
            frames.append(frame)
    if not frames or not rows:
        raise ValueError(f"no rows were found{': ' if refused else ''}{'; '.join(refused[:3])}")
    table = pandas.concat(frames, ignore_index=True)
    for pattern, columns in (values or {}).items():
        chosen = table["run"].map(lambda run, pattern=pattern: fnmatchcase(run, pattern))
        if not chosen.any():
            raise ValueError(
                f"no run is called {pattern!r}; there are {', '.join(table['run'].unique()[:5])}"
            )
        for name, value in columns.items():
            table.loc[chosen, name] = value
    return table


def recognised(table: pandas.DataFrame, quantity: str) -> Any:
    """The column ``(n,)`` that holds params, tokens, step, ... under a usual name; None without one.

    >>> import pandas
    >>> recognised(pandas.DataFrame({"throughput/total_tokens": [1.0, 2.0]}), "tokens").tolist()
    [1.0, 2.0]
    """
    for choice in candidates([str(name) for name in table]).get(quantity, []):
        column = table[choice.source]
        if column.dtype.kind == "f":
            return column.to_numpy(float) * choice.scale
    return None


def _cells(cells: Any, comma: str) -> Any:
    import numpy as np
    import pandas

    raw = cells.astype(object)
    blank = raw.isna() | (raw.astype(str).str.strip() == "")
    values, state = numbers(raw.where(~blank, None).tolist(), comma=comma)
    finite = (state == GOOD) | blank.to_numpy() | np.isin(raw.astype(str).str.lower(), ("nan", "inf", "-inf"))
    return pandas.Series(values, index=cells.index) if finite.all() and not blank.all() else raw.astype(str)


def _stem(run: str) -> str:
    for ending in (".gz", ".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet"):
        run = run.removesuffix(ending)
    return run
