"""Which laws runs allow, and how the answer fares on measured ladders that others published."""

import numpy as np
import pandas
import pytest

from allometry.laws.answers import answer
from allometry.laws.fit import fit
from allometry.laws.runs import read_runs

PARAMS = {"190M": 190_354_176, "370M": 371_262_464, "760M": 758_220_288, "1B": 1_279_395_840}


@pytest.fixture(scope="module")
def olmo(reference_data):
    """Final losses of the OLMo 2 ladder (Bhagia et al., 2024), one row a run."""
    rows = []
    for path in sorted((reference_data / "olmo-ladder").glob("*.csv")):
        size, _, multiple = path.stem.partition("-")
        table = pandas.read_csv(path)
        sets = [name for name in table if name.startswith("eval/") and name.endswith("CrossEntropyLoss")]
        last = table.dropna(subset=sets).iloc[-1]
        rows.append({
            "run": path.stem, "size": size, "multiple": multiple.removesuffix("-rerun"),
            "params": PARAMS[size], "tokens": last["throughput/total_tokens"],
            "c4_en": last["eval/c4_en-validation/CrossEntropyLoss"], "mean": last[sets].mean(),
        })  # fmt: skip
    return pandas.DataFrame(rows)


def ruler(table: pandas.DataFrame, small: str, large: str, loss: str) -> pandas.Series:
    """A straight line through two sizes in log loss against log parameters, for each token multiple."""
    mean = np.log(table.groupby(["size", "multiple"])[loss].mean()).unstack(0)
    slope = (mean[large] - mean[small]) / np.log(PARAMS[large] / PARAMS[small])
    return mean[large] + slope * np.log(PARAMS["1B"] / PARAMS[large])


def errors_of(folder, olmo, sizes: list[str], loss: str) -> tuple[float, float, list[str]]:
    """Root mean square log errors at 1B of the law and of the ruler, and the law's forms."""
    known, target = olmo[olmo["size"].isin(sizes)], olmo[olmo["size"] == "1B"]
    path = folder / "runs.csv"
    known[["run", "params", "tokens", loss]].rename(columns={loss: "loss"}).to_csv(path, index=False)
    told = answer(read_runs(path), predict=target[["params", "tokens"]].to_dict("records"), resamples=50)
    values = np.log([one["value"] for one in told.forecasts])
    straight = target["multiple"].map(ruler(olmo, *sizes[-2:], loss))
    truth = np.log(target[loss])
    return (
        float(np.sqrt(np.mean((values - truth) ** 2))),
        float(np.sqrt(np.mean((straight - truth) ** 2))),
        [one.form.name for one in told.fits],
    )


@pytest.mark.parametrize("loss", ["c4_en", "mean"])
def test_two_sizes_show_no_curvature_and_the_law_beats_the_ruler(tmp_path, olmo, loss):
    law, straight, forms = errors_of(tmp_path, olmo, ["190M", "370M"], loss)
    assert forms == ["kaplan"]
    assert law < straight


@pytest.mark.parametrize("loss", ["c4_en", "mean"])
def test_three_sizes_bring_the_floor_in_and_the_error_to_a_third_of_a_percent(tmp_path, olmo, loss):
    law, straight, forms = errors_of(tmp_path, olmo, ["190M", "370M", "760M"], loss)
    assert set(forms) == {"kaplan", "kaplan-offset", "chinchilla"}
    assert law < 0.0031
    assert law - straight < 0.0015  # the ruler is the better one here: 0.16 and 0.15 %


def test_few_records_are_fitted_by_least_squares_and_many_robustly(tmp_path):
    rng = np.random.default_rng(0)

    def runs(sizes: int, horizons: int):
        n, d = np.meshgrid(np.geomspace(1e6, 1e9, sizes), np.geomspace(1e8, 1e11, horizons))
        loss = 1.7 + 400 / n.ravel() ** 0.34 + 410 / d.ravel() ** 0.28
        table = pandas.DataFrame({"params": n.ravel(), "tokens": d.ravel()})
        table["loss"] = loss * np.exp(0.003 * rng.standard_normal(len(loss)))
        table.to_csv(tmp_path / "runs.csv", index=False)
        return answer(read_runs(tmp_path / "runs.csv"), law="chinchilla", resamples=0)

    few, many = runs(4, 4), runs(8, 8)
    x = {name: few.points[name].to_numpy() for name in ("params", "tokens")}
    squared = fit("chinchilla", x, few.points["loss"], loss="squared", resamples=0)
    assert few.fit.params == pytest.approx(squared.params, rel=1e-6)
    x = {name: many.points[name].to_numpy() for name in ("params", "tokens")}
    huber = fit("chinchilla", x, many.points["loss"], resamples=0)
    assert many.fit.params == pytest.approx(huber.params, rel=1e-6)
