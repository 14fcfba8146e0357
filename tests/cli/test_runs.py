"""``allometry runs``: a store as tables that others read, and plans that go only when they may."""

import csv
import io
import json
import os
import sys

import numpy as np
import pandas as pd
import pytest

from allometry import laws
from allometry.cli.main import main
from allometry.study import Store
from allometry.study.owner import Owner
from allometry.study.worker import task_directory

LAW = {"E": 1.8, "A": 400.0, "B": 2000.0, "alpha": 0.35, "beta": 0.37}


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs the command in this process, in the folder of its store; gives exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, answer=None):
        monkeypatch.setattr(sys, "argv", ["allometry", *map(str, arguments)])
        typed = io.StringIO(answer or "")
        typed.isatty = lambda: answer is not None
        monkeypatch.setattr(sys, "stdin", typed)
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def ladder(tmp_path):
    """A store as a forecast leaves it: losses of a known law with noise; one run failed, one diverged."""
    generator = np.random.default_rng(1)
    with Store(tmp_path / ".allometry" / "store.db") as store:
        digest = store.put_plan("forecast", {"plan": "tiny"}, {"sizes": [1, 2], "ladder": {"depth": 3}})
        for params in (1e7, 3e7, 1e8, 3e8):
            for seed in (0, 1):
                key = f"params-{params:.0f}/seed-{seed}"
                run = store.start_run(digest, key, {"seeds": [seed], "ladder": {"depth": 3}})
                for tokens in (10 * params, 40 * params):
                    loss = LAW["E"] + LAW["A"] * params ** -LAW["alpha"] + LAW["B"] * tokens ** -LAW["beta"]
                    values = {"params": params, "tokens": tokens, "seed": seed,
                              "loss": loss * float(np.exp(0.002 * generator.normal()))}  # fmt: skip
                    store.add_record(digest, key, f"tokens={tokens:.0f}", values, timing={"seconds": 1.5})
                store.finish_run(run)
        lost = store.start_run(digest, "lost", {"seeds": [9]})
        store.add_record(digest, "lost", "tokens=1", {"params": 1e7, "tokens": 1e8, "seed": 9, "loss": 55.0})
        store.fail_run(lost, "the loss grew", "diverged", step=7)
        broken = store.start_run(digest, "broken", {"seeds": [8]})
        store.fail_run(broken, "out of memory, killed")
        store.put_plan("other", {}, {"nothing": True})
        task_directory(store, digest, "task").mkdir(parents=True)
        (task_directory(store, digest, "task") / "error.txt").write_text("Traceback ...")
    return digest


def test_list_counts_what_the_store_holds(call, ladder):
    code, told, errors = call("runs", "list", "--json")
    plans = {one["kind"]: one for one in json.loads(told)["plans"]}
    assert (code, errors) == (0, "")
    assert plans["forecast"]["digest"] == ladder
    assert plans["forecast"]["records"] == 17
    assert plans["forecast"]["runs"] == {"pending": 0, "running": 0, "done": 8, "failed": 1, "diverged": 1}
    assert set(plans) == {"forecast", "other"}
    told = call("runs", "list", "--status", "failed")[1].splitlines()
    assert len(told) == 2
    assert told[1].split()[:2] == [ladder[:12], "forecast"]
    assert "No such plan" in call("runs", "list", "--kind", "nothing")[1]


def test_list_of_a_plan_is_its_runs(call, ladder):
    told = json.loads(call("runs", "list", "--plan", ladder[:7], "--json")[1])["runs"]
    assert [one["run"] for one in told][-2:] == ["lost", "broken"]
    assert [one["records"] for one in told] == [2] * 8 + [1, 0]
    assert told[-2]["step"] == 7
    shown = call("runs", "list", "--plan", ladder[:7], "--status", "failed")[1]
    assert "broken" in shown
    assert "out of memory, killed" in shown
    assert "lost" not in shown


def test_show_tells_plan_runs_reasons_and_where_traces_are(call, ladder):
    told = call("runs", "show", ladder[:6].upper())[1]
    for words in (ladder, "ladder.depth", "1, 2", "Runs (10, 17 records)", "the loss grew", "error.txt"):
        assert words in told
    assert max(map(len, told.splitlines())) <= 100 + len(os.getcwd())
    facts = json.loads(call("runs", "show", ladder[:6], "--json")[1])
    assert facts["content"] == {"sizes": [1, 2], "ladder": {"depth": 3}}
    one = json.loads(call("runs", "show", ladder[:6], "params-300000000/seed-1", "--json")[1])
    assert [record["tokens"] for record in one["told"]] == [3e9, 1.2e10]
    assert one["told"][0]["seed"] == 1
    assert one["spec"]["ladder"] == {"depth": 3}
    assert "tokens=3000000000" in call("runs", "show", ladder[:6], "params-300000000/seed-1")[1]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_export_is_what_was_stored_and_fits_to_the_same_law(call, ladder, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "deep" / f"ladder.{ending}"
    code, told, errors = call("runs", "export", ladder[:6], "--out", path)
    assert (code, errors) == (0, "")
    assert "17 records of 9 runs" in told
    assert [one.name for one in path.parent.iterdir()] == [path.name]  # nothing half written beside it
    read = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: pd.read_json(p, lines=True)}
    table = read[ending](path)
    with Store(tmp_path / ".allometry" / "store.db") as store:
        kept = store.records(ladder)
    for name in ("params", "tokens", "loss"):
        np.testing.assert_allclose(table[name].to_numpy(float), kept[name].to_numpy(float), rtol=1e-12)
    assert table["seed"].tolist() == kept["value.seed"].tolist()
    code, told, _ = call("fit", path, "--law", "chinchilla", "--predict", "params=1e9,tokens=2e10", "--json")
    answer = json.loads(told)
    assert code == 0
    assert answer["residuals"]["points"] == 16  # the run that diverged is left out
    assert answer["residuals"]["runs"] == 8
    done = kept[kept["status"] == "done"]
    direct = laws.fit("chinchilla", done[["params", "tokens"]].astype(float), done["loss"].to_numpy(float),
                      run=done["run"].to_numpy(), loss="squared", resamples=0)  # fmt: skip
    expected = float(np.ravel(direct.predict({"params": [1e9], "tokens": [2e10]}))[0])
    assert answer["forecasts"][0]["value"] == pytest.approx(expected, rel=1e-6)


def test_a_csv_holds_floats_to_the_last_bit(call, ladder, tmp_path):
    call("runs", "export", ladder[:6], "--out", tmp_path / "a.csv")
    with Store(tmp_path / ".allometry" / "store.db") as store:
        kept = store.records(ladder)["loss"]
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == kept.tolist()


def test_json_lines_are_strict_json_also_where_a_loss_is_infinite(call, tmp_path):
    with Store(tmp_path / ".allometry" / "store.db") as store:
        plan = store.put_plan("forecast", {}, {"a": 1})
        run = store.start_run(plan, "run", {"nested": {"low": float("-inf")}})
        store.add_record(plan, "run", "first", {"loss": float("inf"), "params": 1})
        store.finish_run(run)
    call("runs", "export", plan[:6], "--out", "a.jsonl")

    def refuse(word):
        raise AssertionError(word)

    line = json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=refuse)
    assert line["loss"] == "inf"
    assert line["spec.nested"] == {"low": "-inf"}


def test_an_export_keeps_values_whose_names_are_taken(call, tmp_path):
    with Store(tmp_path / ".allometry" / "store.db") as store:
        plan = store.put_plan("forecast", {}, {"a": 1})
        run = store.start_run(plan, "run", {"loss": 7}, seed=3)
        values = {"name": "a name", "record": "a record", "seed": 4, "diverged": "no", "reason": "told"}
        store.add_record(plan, "run", "first", values)
        store.finish_run(run)
    call("runs", "export", plan[:6], "--out", "a.jsonl")
    line = json.loads((tmp_path / "a.jsonl").read_text())
    assert line["name"] == "first"
    assert line["value.name"] == "a name"
    assert (line["record"], line["diverged"], line["reason"]) == ("a record", "no", "told")
    assert (line["seed"], line["value.seed"], line["spec.loss"]) == (3, 4, 7)


def test_delete_asks_and_takes_no_for_an_answer(call, ladder, tmp_path):
    folder = tmp_path / ".allometry" / "plans" / ladder[:12]
    code, told, errors = call("runs", "delete", ladder[:6], answer="n\n")
    assert (code, told) == (1, "")
    assert "17 records" in errors
    assert "Nothing was deleted" in errors
    code, _, errors = call("runs", "delete", ladder[:6])  # nobody there to ask
    assert code == 2
    assert "--yes" in errors
    assert folder.is_dir()
    code, told, _ = call("runs", "delete", ladder[:6], answer="y\n")
    assert code == 0
    assert "10 runs, 17 records" in told
    assert not folder.exists()
    assert [one["kind"] for one in json.loads(call("runs", "list", "--json")[1])["plans"]] == ["other"]


def test_a_run_that_is_being_trained_keeps_its_plan_until_its_process_is_gone(call, tmp_path):
    with Store(tmp_path / ".allometry" / "store.db") as store:
        plan = store.put_plan("forecast", {}, {"a": 1})
        later = store.put_plan("forecast/target", {"plan": plan}, {"told": 2.5})
        run = store.start_run(plan, "run", {})
    code, told, errors = call("runs", "delete", plan[:6], "--yes")
    assert (code, told) == (2, "")
    assert str(os.getpid()) in errors
    assert "lives" in call("runs", "list", "--plan", plan[:6])[1]
    with Store(tmp_path / ".allometry" / "store.db") as store:
        store.release(run)
        here = Owner.here()
        store.claim(plan, ["run"], owner=Owner(here.machine, here.pid, "another birth"))
    assert "is gone" in call("runs", "list", "--plan", plan[:6])[1]
    code, told, errors = call("runs", "delete", plan[:6], "--yes", "--json")
    assert code == 0
    assert json.loads(told)["deleted"] == plan
    assert later[:12] in errors  # what was made from it is named


def test_what_cannot_be_is_one_sentence(call, ladder, tmp_path):
    with Store(tmp_path / ".allometry" / "store.db") as store:
        digests = [store.put_plan("many", {"n": n}, {"n": n}) for n in range(17)]
    first = [digest[0] for digest in digests]
    doubled = next(digit for digit in first if first.count(digit) > 1)  # of 17 digits two are equal
    for arguments, words in (
        (("show", doubled), "plans begin"),
        (("show", "not-hex"), "first digits of its digest"),
        (("show", ladder[:6], "par"), "8 runs begin"),
        (("show", ladder[:6], "nothing"), "no run is called"),
        (("list", "--status", "lazy"), "not 'lazy'"),
        (("list", "--plan", ladder[:6], "--kind", "other"), "of kind 'forecast'"),
        (("export", ladder[:6], "--out", "a.xlsx"), ".csv"),
        (("export", digests[0], "--out", "a.csv"), "no records"),
        (("list", "--store", "elsewhere.db"), "there is no store"),
    ):
        code, told, errors = call("runs", *arguments)
        assert (code, told) == (2, "")
        assert words in errors
        assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "elsewhere.db").exists()


@pytest.mark.slow
def test_a_ladder_trained_here_is_fitted_again_from_its_export(call, tmp_path):
    pytest.importorskip("torch")
    from allometry.forecast.forecast import forecast

    (tmp_path / "verse.txt").write_text("".join(f"{n} bottles of beer on the wall\n" for n in range(20000)))
    trained = forecast(tmp_path / "verse.txt", plan="tiny", seeds=1, check=False, workers=1, device="cpu",
                       store=tmp_path / ".allometry" / "store.db", display=None)  # fmt: skip
    code, _, _ = call("runs", "export", trained.digest[:8], "--out", "ladder.csv")
    assert code == 0
    table = laws.read_runs(tmp_path / "ladder.csv").final()
    mine = trained.runs.sort_values(["params", "tokens"])
    again = table.sort_values(["params", "tokens"])
    np.testing.assert_allclose(again[["params", "tokens", "loss"]], mine[["params", "tokens", "loss"]])
    code, told, _ = call("fit", "ladder.csv", "--predict", "params=1e5,tokens=1e5", "--json")
    assert code == 0
    assert json.loads(told)["residuals"]["points"] == 9
