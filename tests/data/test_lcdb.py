"""LCDB: what the archive holds where it is there; what is refused where it is not."""

import os
from pathlib import Path

import numpy as np
import pytest

from allometry.data import learning_curves
from allometry.data.lcdb import ARCHIVE
from allometry.laws import fit_curves


@pytest.fixture(scope="module")
def table():
    named = os.environ.get("ALLOMETRY_REFERENCE_DATA")
    given = Path(named) / "lcdb" if named else None
    try:
        return learning_curves(given if given is not None and (given / ARCHIVE).is_file() else None)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_the_archive_holds_what_its_authors_say(table):
    assert len(table) == 1_953_371
    assert table["data_set"].nunique() == 248
    assert len(table["learner"].cat.categories) == 20
    assert table.groupby(["data_set", "learner"], observed=True).ngroups == 4367
    assert table["error"].between(0, 1).all()
    assert not table.duplicated(["data_set", "learner", "samples", "outer_seed", "inner_seed"]).any()


@pytest.mark.slow
def test_1774_curves_are_one_fit(table):
    keys = ["data_set", "learner", "samples"]
    mean = table.groupby(keys, observed=True)["error"].mean().unstack("samples")
    errors = mean.where(mean > 2e-3)
    sizes = errors.columns.to_numpy(float)
    long = (errors.notna().sum(axis=1) >= 9) & (errors.notna() * sizes).max(axis=1).ge(4096)
    found = fit_curves(sizes, errors[long].to_numpy())
    assert len(found.alpha) == 1774
    assert np.isfinite(found.alpha).all()
    # counted elsewhere from the same archive with NumPy's polyfit: 38 % straight beyond R² = 0.9
    assert np.mean(found.r_squared > 0.9) == pytest.approx(0.38, abs=0.005)
    alpha = found.table.set_index(errors[long].index)["alpha"].unstack("learner")
    pairs = (alpha["RandomForest"] - alpha["ExtraTrees"]).dropna()
    assert len(pairs) == 82
    assert np.mean(pairs.abs() < 0.05) == pytest.approx(0.94, abs=0.005)


def test_a_table_taken_from_the_archive_is_read(tmp_path):
    file = tmp_path / "database-accuracy.csv"
    file.write_text(
        "openmlid,learner,size_train,size_test,outer_seed,inner_seed,traintime,score_test\n"
        "44,sklearn.ensemble.ExtraTreesClassifier,16,461,0,0,0.1,0.75\n"
        "44,SVC_linear,23,461,0,1,0.1,1.0\n"
    )
    table = learning_curves(file)
    assert table["error"].tolist() == [0.25, 0.0]
    assert table["learner"].tolist() == ["ExtraTrees", "SVC_linear"]
    assert table["samples"].tolist() == [16, 23]


def test_what_is_not_the_archive_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLOMETRY_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(FileNotFoundError, match="pip download --no-deps"):
        learning_curves()
    (tmp_path / ARCHIVE).write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not the published archive"):
        learning_curves()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no table of LCDB"):
        learning_curves(tmp_path / "other.csv")
