"""Real learning curves, ready to be fitted: LCDB, 20 learners on 248 tabular data sets.

Felix Mohr, Tom J. Viering, Marco Loog and Jan N. van Rijn, "LCDB 1.0: An Extensive Learning Curves Database
for Classification Tasks", 2022. doi:10.1007/978-3-031-26419-1_1.  MIT licence.

* Sizes are 16 √2^k; each is repeated over 5 outer splits (train against test) and mostly 5 inner ones.
* The figures are a table inside the source archive of the package ``lcdb`` on PyPI.  It is read from the
  archive and compared with the published bytes; the package, whose code imports what it does not declare, is
  never installed or run.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas

__all__ = ["learning_curves"]

ARCHIVE = "lcdb-0.1.0.tar.gz"
_SHA256 = "450ea69b249866298653f718d66a825e3d19a4024dd4ff140b89f2e04d4777ae"
_COLUMNS = {
    "openmlid": "int32",
    "learner": "category",
    "size_train": "int32",
    "size_test": "int32",
    "outer_seed": "int16",
    "inner_seed": "int16",
    "score_test": "float64",
}
_SHORT = {"LinearDiscriminantAnalysis": "LDA", "QuadraticDiscriminantAnalysis": "QDA"}


def learning_curves(
    path: str | Path | None = None, *, measure: Literal["accuracy", "logloss"] = "accuracy"
) -> "pandas.DataFrame":
    """Test errors of every learner, data set, size and seed; 1,953,371 rows.

    Parameters
    ----------
    path : path, optional
        The archive, a folder that holds it, or a table ``database-*.csv`` taken from it.  By default it is
        looked for in the folder that ``ALLOMETRY_DATA`` names or ``lcdb`` in it, and in
        ``~/.cache/allometry/lcdb``.
    measure : {"accuracy", "logloss"}
        Error is one less accuracy, or the log loss in nats.

    Returns
    -------
    DataFrame
        ``data_set`` (number at OpenML), ``learner`` (category), ``samples``, ``test_samples``,
        ``outer_seed``, ``inner_seed``, ``error``.

    Raises
    ------
    FileNotFoundError
        It is not on this machine; the sentence says how to get it.
    ValueError
        The archive is not the published one, or the table has other columns.

    Examples
    --------
    >>> learning_curves(measure="speed")
    Traceback (most recent call last):
        ...
    ValueError: measure is 'accuracy' or 'logloss'; got 'speed'
    """
    if measure not in ("accuracy", "logloss"):
        raise ValueError(f"measure is 'accuracy' or 'logloss'; got {measure!r}")
    place = _find(None if path is None else Path(path))
    return _read(place, f"database-{measure}.csv").copy()


def _places() -> Iterator[Path]:
    named = os.environ.get("ALLOMETRY_DATA")
    if named:
        yield Path(named)
        yield Path(named) / "lcdb"
    cache = os.environ.get("XDG_CACHE_HOME")
    yield (Path(cache) if cache else Path.home() / ".cache") / "allometry" / "lcdb"


def _find(given: Path | None) -> Path:
    if given is not None and given.is_file():
        return given
    places = list(_places()) if given is None else [given]
    for place in places:
        if (place / ARCHIVE).is_file():
            return place / ARCHIVE
    raise FileNotFoundError(
        "LCDB is not on this machine: fetch its archive of 68 MB by 'pip download --no-deps --no-binary lcdb "
        f"lcdb==0.1.0 -d {places[-1]}' (nothing is installed); looked in {', '.join(map(str, places))}"
    )


@lru_cache(maxsize=1)
def _read(place: Path, member: str) -> "pandas.DataFrame":
    import pandas

    source: Path | io.BytesIO = place
    if place.suffix != ".csv":
        with place.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
                raise ValueError(f"{place} is not the published archive {ARCHIVE}; fetch it again")
        with tarfile.open(place) as archive:
            found = archive.extractfile(f"{ARCHIVE.removesuffix('.tar.gz')}/lcdb/{member}")
            assert found is not None
            source = io.BytesIO(found.read())
    try:
        table = pandas.read_csv(source, usecols=list(_COLUMNS), dtype=_COLUMNS)
    except ValueError as error:
        raise ValueError(f"{place} is no table of LCDB: {error}") from None
    score = table.pop("score_test")
    table["error"] = score if member == "database-logloss.csv" else 1.0 - score
    table.columns = [
        "data_set", "learner", "samples", "test_samples", "outer_seed", "inner_seed", "error"
    ]  # fmt: skip
    names = {
        one: one.rpartition(".")[2].removesuffix("Classifier") for one in table["learner"].cat.categories
    }
    table["learner"] = table["learner"].cat.rename_categories(
        {whole: _SHORT.get(name, name) for whole, name in names.items()}
    )
    return table
