"""A ladder of somebody's own command: a trainer of a few lines of Python, whose losses obey a known law."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from allometry.forecast.child import CommandFailed, ended, run_command, time_limit
from allometry.forecast.collect import params_at
from allometry.forecast.commanded import Goal, forecast_commands
from allometry.forecast.commands import CommandLadder, words
from allometry.forecast.result import ForecastError
from allometry.study import Context, Store
from allometry.study.worker import MEMORY_SETTINGS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLOOR, A, ALPHA, B, BETA = 1.2, 30.0, 0.35, 800.0, 0.45
NOISE = 0.003

# Notes its start beside the ladder, and fails while broken.txt names its width and seed.
TRAINER = f"""
import math, os, pathlib, random, sys
width, tokens, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
seed, out = sys.argv[4:]
here = pathlib.Path(__file__).parent
with open(here / "starts.txt", "a") as file:
    file.write(os.path.basename(out) + "\\n")
print("preparing", os.environ["OMP_NUM_THREADS"])
broken = here / "broken.txt"
if broken.exists() and f"{{width}}/{{seed}}" in broken.read_text():
    sys.stderr.write("Traceback ...\\nRuntimeError: no space left\\n")
    sys.exit(3)
n = 36 * width**2 + 40 * width
loss = {FLOOR} + {A} * n**-{ALPHA} + {B} * tokens**-{BETA}
luck = {NOISE} * random.Random(f"{{width}} {{tokens}} {{seed}}").gauss(0, 1)
loss *= math.exp(luck + 0.05 * math.log(rate / 4e-3) ** 2)
os.makedirs(out, exist_ok=True)
with open(out + "/metrics.csv", "w") as file:
    file.write("step,tokens,params,val_loss\\n")
    for tenth in range(1, 11):
        file.write(f"{{tenth}},{{tokens * tenth // 10}},{{n}},{{loss * (1.5 - tenth / 20)}}\\n")
"""


def parameters(width):
    return 36 * width**2 + 40 * width


def truth(width, tokens):
    return FLOOR + A * parameters(width) ** -ALPHA + B * tokens**-BETA


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """The command's template; runs lie in the test's own folder."""
    (tmp_path / "train er.py").write_text(TRAINER)
    monkeypatch.chdir(tmp_path)
    program = shlex.join([sys.executable, "-I", "-S", str(tmp_path / "train er.py")])
    return f"{program} {{width}} {{tokens}} {{lr}} {{seed}} {{out}}"


def small(command, **changes):
    given_ = {"widths": [16, 32], "tokens": [5e5], "lr": 4e-3, "seeds": 2} | changes
    return CommandLadder(command, **given_)


def starts(folder):
    return (folder / "starts.txt").read_text().split()


# --- words -------------------------------------------------------------------------------------------------
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_no_value_becomes_a_second_word(out):
    argv = words("train --out {out} 'a {out} b' x={width:04d}", {"out": out, "width": 16})
    assert argv == ["train", "--out", out, f"a {out} b", "x=0016"]
    assert shlex.split(shlex.join(argv)) == argv


def test_doubled_braces_stand_for_themselves_and_quotes_are_the_users():
    template = """sh -c 'echo "{{a}} $1"' sh {lr}"""
    assert words(template, {"lr": 4e-3}) == ["sh", "-c", 'echo "{a} $1"', "sh", "0.004"]


@pytest.mark.parametrize(
    ("command", "changes", "sentence"),
    [
        ("train {width} {depth} {out}", {}, "{depth} in '{depth}' is no placeholder; known are {width}"),
        ("train {width} {out} {}", {}, "{} in '{}' is no placeholder"),
        ("train {width.real} {out}", {}, "no placeholder"),
        ("train {width!r} {out}", {}, "no placeholder"),
        ("train {width} } {out}", {}, "doubled"),
        ("train '{width} {out}", {}, "cannot be split into words"),
        ("", {}, "the command is empty"),
        ("train {out} {seed}", {"lr": None}, "2 values of width, but the command has no {width}"),
        ("train {width} {out}", {"lr": None, "tokens": [1, 2]}, "no {tokens}"),
        ("train {width} {out}", {"lr": None}, "2 values of seed, but the command has no {seed}"),
        ("train {width} {seed} {lr} {out}", {"lr": None}, "--lr 4e-3"),
        ("train {width} {seed} {out}", {}, "the command has no {lr}"),
        ("train {width} {seed} {lr} {out}", {"lr": {16: 1e-3}}, "none for width 32"),
        ("train {width} {seed} {lr} {out}", {"lr": [1e-3, -2.0]}, "positive number, not -2.0"),
        ("train {width} {seed} {lr} {params} {out}", {"params": {16: 100}}, "give them for width 32"),
        ("train {width} {seed} {lr}", {}, "no {out}"),
        ("train {width} {seed} {lr}", {"logs": "logs/{width}.csv"}, "the same place for every seed"),
        ("train {width} {seed} {lr} {out}", {"widths": []}, "give widths"),
        ("train {width} {seed} {lr} {out}", {"tokens": [0.5]}, "whole numbers of at least 1, not 0.5"),
        ("train {width} {seed} {lr} {out}", {"seeds": 0}, "seeds must be at least 1"),
        ("train {width} {seed} {lr} {out}", {"records": "all"}, "'last' or 'best'"),
        ("train {width:q} {seed} {lr} {out}", {}, "{width:q}"),
    ],
)
def test_what_does_not_fit_together_is_one_sentence(command, changes, sentence):
    with pytest.raises(ValueError) as refused:
        small(command, **changes).runs()
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_width_horizon_and_seed_once_and_rates_by_width():
    ladder = CommandLadder(
        "t {width} {tokens} {lr} {seed} {out}", [32, 16], [1e6, 5e5], lr={16: 8e-3, 32: 6e-3}, seeds=3, seed=5
    )
    runs = ladder.runs()
    assert len({run.key for run in runs}) == len({run.argv for run in runs}) == len(runs) == 12
    assert {(run.width, run.lr) for run in runs} == {(16, 8e-3), (32, 6e-3)}
    assert {run.seed for run in runs} == {5, 6, 7}
    with pytest.raises(ValueError, match="none for width 64"):
        ladder.target_run(64, 10**6)
    plain = CommandLadder("t {width} {seed} {out}", [16], [1e6])
    assert plain.target_run(64, 10**6).seed not in {run.seed for run in plain.runs()}


# --- running -----------------------------------------------------------------------------------------------
def test_the_forecast_is_the_known_truth_and_stood_before_the_target_trained(trainer, tmp_path):
    ladder = CommandLadder(trainer, [16, 32, 48, 64], [5e5, 1e6, 2e6], lr=4e-3, seeds=2)
    said = []
    with Store(tmp_path / "store.db") as store:
        told = forecast_commands(
            ladder, Goal(width=128, tokens=8e6), store=store, check=True, workers=0, display=None,
            tell=said.append,
        )  # fmt: skip
        stored = store.plan(told.digest)
        assert (stored.kind, store.runs(stored)["status"].tolist()) == ("commands/target", ["done"])
    # N(w) = a w² + b w is the trainer's own count, so that the extrapolation is exact
    assert told.target["params"] == parameters(128)
    expected = truth(128, 8e6)
    assert told.low < expected < told.high
    assert told.value == pytest.approx(expected, rel=0.02)
    assert told.check is not None
    assert abs(math.log(told.check.measured / expected)) < 4 * NOISE
    assert told.check.inside == (told.low <= told.check.measured <= told.high)
    # both naive forecasts are blind to the floor or to the way there: further off than the law
    assert abs(told.check.error) < min(map(abs, told.check.naive_errors.values()))
    before = stored.content["forecast"]
    assert (before["loss"], before["low"], before["high"]) == (told.value, told.low, told.high)
    written = (tmp_path / ladder.target_run(128, 8_000_000).out / "metrics.csv").stat().st_mtime
    assert stored.created < written
    assert not any("after its target" in note for note in told.answer.warnings)
    assert any("one learning rate, 0.004" in note for note in told.answer.warnings)
    assert len(starts(tmp_path)) == 25
    assert told.sentence() in said
    # told again, nothing runs; from another store, with the target's log there already, it is no forecast
    with Store(tmp_path / "another.db") as store:
        again = forecast_commands(ladder, Goal(width=128, tokens=8e6), store=store, run=False)
    assert len(starts(tmp_path)) == 25
    assert (again.value, again.check) == (told.value, told.check)
    assert any("after its target had been trained" in note for note in again.answer.warnings)


def test_a_failed_run_gives_its_reason_and_only_it_is_repeated(trainer, tmp_path):
    (tmp_path / "broken.txt").write_text("32/1")
    ladder = small(trainer, tokens=[5e5, 1e6])
    with Store(tmp_path / "store.db") as store:
        report = ladder.run(store, workers=0, threads=3, display=None)
        keys = [run.key for run in ladder.runs() if (run.width, run.seed) == (32, 1)]
        reason = "CommandFailed: exit code 3: RuntimeError: no space left"
        assert report.failed == dict.fromkeys(keys, reason)
        assert len(report.done) == 6
        assert [ladder.done(run) for run in ladder.runs()].count(False) == 2
        with pytest.raises(ForecastError, match=r"2 of the runs failed; the first, .*no space left"):
            forecast_commands(ladder, store=store, workers=0, display=None)
        (tmp_path / "broken.txt").unlink()
        before = len(starts(tmp_path))
        report = ladder.run(store, workers=0, display=None)
        assert report.ok
        assert sorted(starts(tmp_path)[before:]) == sorted(report.done) == sorted(keys)
        output = (tmp_path / ladder.runs()[0].out / "output.log").read_text()
        assert output == "preparing 3\n"
    # another store finds what is done by the folders alone
    with Store(tmp_path / "another.db") as store:
        assert len(ladder.run(store, workers=0, display=None).skipped) == 8
    assert len(starts(tmp_path)) == before + 2


def test_workers_are_given_the_command_too(trainer, tmp_path):
    ladder = small(trainer, widths=[16], seeds=2)
    with Store(tmp_path / "store.db") as store:
        assert ladder.run(store, workers=1, display=None).ok
        assert store.records(next(iter(store.plans()["digest"])))["exit_code"].tolist() == [0, 0]
    assert [ladder.done(run) for run in ladder.runs()] == [True, True]


def test_the_sweep_finds_the_best_rate_and_it_stays(trainer, tmp_path):
    ladder = small(trainer, lr=[1e-3, 4e-3, 1.6e-2], seeds=1)
    with pytest.raises(ValueError, match="yet to be chosen"):
        ladder.runs()
    with Store(tmp_path / "store.db") as store:
        assert ladder.settled(store) is None
        assert ladder.run(store, workers=0, display=None).ok
        settled = ladder.settled(store)
        assert settled.lr == 4e-3
        # the trainer's loss is a parabola in the log of the rate, 0.05 log(4)² above its least at both ends
        losses = ladder.swept(store)
        assert math.log(losses["0.001"] / losses["0.004"]) == pytest.approx(0.05 * math.log(4) ** 2)
        assert losses["0.001"] == pytest.approx(losses["0.016"])
        # three of the sweep at the smallest size, of which the best is the ladder's own first run
        assert len(starts(tmp_path)) == len(set(starts(tmp_path))) == 4
        other = tmp_path / ladder.sweep()[0].out / "metrics.csv"
        rows = other.read_text().splitlines()
        other.write_text("\n".join([*rows[:-1], ",".join([*rows[-1].split(",")[:-1], "0.1"])]))
        assert ladder.settled(store).lr == 4e-3
    with Store(tmp_path / "another.db") as store:  # chosen anew, the changed log would win
        assert ladder.settled(store).lr == 1e-3


def test_a_command_that_is_changed_does_not_inherit_results(trainer, tmp_path):
    with Store(tmp_path / "store.db") as store:
        small(trainer, widths=[16]).run(store, workers=0, display=None)
        with pytest.raises(ValueError, match=r"holds a run of another command .*choose another --out"):
            small(trainer + " --depth 4", widths=[16]).run(store, workers=0, display=None)
        with pytest.raises(ValueError, match="there is no program 'no-such-trainer'"):
            small(trainer.replace(shlex.quote(sys.executable), "no-such-trainer"), out="b").run(store)


def test_a_lost_folder_is_told(trainer, tmp_path):
    ladder = small(trainer, widths=[16])
    with Store(tmp_path / "store.db") as store:
        ladder.run(store, workers=0, display=None)
        (tmp_path / ladder.runs()[0].out / "command.txt").unlink()
        (tmp_path / ladder.runs()[0].out / "metrics.csv").unlink()
        with pytest.raises(ValueError, match="as done, but its result is not in"):
            ladder.run(store, workers=0, display=None)


# --- the child ---------------------------------------------------------------------------------------------
def task(folder, *argv):
    return {"key": "run", "out": "run", "argv": list(argv), "directory": str(folder)}


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return True


# A shell whose child and grandchild wait for ever; the file tells their numbers.
FAMILY = (
    "trap 'echo saved > saved.txt' TERM; sleep 300 & echo $! $$ > part.txt; mv part.txt pids.txt; wait; wait"
)


def test_a_stop_reaches_the_whole_group_and_gives_it_time_to_save(tmp_path):
    stop = threading.Event()
    context = Context(tmp_path, stop=stop)
    thread = threading.Thread(
        target=lambda: list(run_command(task(tmp_path, "sh", "-c", FAMILY), context)), daemon=True
    )
    thread.start()
    until((tmp_path / "pids.txt").exists)
    pids = (tmp_path / "pids.txt").read_text().split()
    assert all(map(alive, pids))
    began = time.monotonic()
    stop.set()
    thread.join(10)
    assert time.monotonic() - began < 4.0  # the executor waits two seconds; a busy machine is given more
    until(lambda: not any(map(alive, pids)), 2.0)
    assert (tmp_path / "saved.txt").exists()
    assert ended(tmp_path / "run", ["sh", "-c", FAMILY]) is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_group_dies_with_a_worker_that_is_killed(tmp_path):
    program = (
        "import json, pathlib, sys; from allometry.forecast.child import run_command; "
        "from allometry.study import Context; "
        "list(run_command(json.loads(sys.argv[1]), Context(pathlib.Path('.'))))"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(task(tmp_path, "sh", "-c", FAMILY))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    until((tmp_path / "pids.txt").exists, 30.0)
    pids = (tmp_path / "pids.txt").read_text().split()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    until(lambda: not any(map(alive, pids)))
    assert not (tmp_path / "saved.txt").exists()  # at once: the next attempt may begin at any moment


def test_the_environment_is_the_users_with_threads_set(tmp_path, monkeypatch):
    for name, value in (*MEMORY_SETTINGS.items(), ("MINE", "a b"), ("OMP_NUM_THREADS", "7")):
        monkeypatch.setenv(name, value)
    with time_limit(60.0):
        list(run_command(task(tmp_path, "env"), Context(tmp_path, threads=3)))
    told = dict(
        line.split("=", 1)
        for line in (tmp_path / "run" / "output.log").read_text().splitlines()
        if "=" in line
    )
    assert (told["MINE"], told["OMP_NUM_THREADS"], told["MKL_NUM_THREADS"]) == ("a b", "3", "3")
    # what our own workers are given for their memory is no part of it, nor what we tell each other
    assert not {*MEMORY_SETTINGS, "ALLOMETRY_COMMAND_SECONDS"} & set(told)


def test_a_run_that_takes_too_long_has_failed(tmp_path):
    with time_limit(2.5), pytest.raises(CommandFailed, match=r"longer than 2.5 seconds: half way"):
        list(run_command(task(tmp_path, "sh", "-c", "echo half way; sleep 300"), Context(tmp_path)))
    assert "ALLOMETRY_COMMAND_SECONDS" not in os.environ
    with pytest.raises(ValueError, match="another command"):
        list(run_command(task(tmp_path, "true"), Context(tmp_path)))


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("printf 'a\\n 1/9\\r 2/9\\r\\n'; exit 4", "exit code 4: 2/9"),
        ("kill -9 $$", "ended by signal 9 (SIGKILL, often: out of memory): it printed nothing"),
        ("echo gone; kill -TERM $$", "ended by signal 15 (SIGTERM): gone"),
    ],
)
def test_reasons_are_the_last_words(tmp_path, script, reason):
    with pytest.raises(CommandFailed) as failed:
        list(run_command(task(tmp_path, "sh", "-c", script), Context(tmp_path)))
    assert str(failed.value) == reason


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(CommandFailed, match=r"no such program.*nowhere: No such file"):
        list(run_command(task(tmp_path, "/nowhere", "a"), Context(tmp_path)))


def test_a_second_attempt_waits_for_the_last_process_of_the_first(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("allometry.forecast.child._LOCK_SECONDS", 0.3)
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "output.log").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CommandFailed, match="earlier attempt still writes"):
            list(run_command(task(tmp_path, "true"), Context(tmp_path)))
    records = list(run_command(task(tmp_path, "true"), Context(tmp_path)))
    assert [record.values for record in records] == [{"exit_code": 0}]


# --- logs made elsewhere -----------------------------------------------------------------------------------
def log(path, width, tokens, *, columns="step,tokens,params,loss", reach=1.0, params=True):
    """A log as a scheduler's runs leave it; fewer columns where less is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {"tokens": int(reach * tokens), "params": parameters(width), "loss": truth(width, tokens)}
    rows = [
        {"step": 1, **values, "tokens": values["tokens"] // 2, "loss": 0.9 * values["loss"]},
        {"step": 2, **values},
    ]
    names = columns.split(",")
    lines = [columns, *(",".join(f"{row[name]}" for name in names) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


def test_logs_made_elsewhere_are_read_and_nothing_is_run(trainer, tmp_path):
    ladder = small(trainer, widths=[16, 32, 48], tokens=[5e5, 1e6, 2e6], seeds=1)
    runs = ladder.runs()
    for run in runs[:-2]:
        log(tmp_path / run.out / "deep" / "metrics.csv", run.width, run.tokens)
    log(tmp_path / runs[-2].out / "metrics.csv", runs[-2].width, runs[-2].tokens, reach=0.4)
    found = ladder.collect()
    assert found.missing == {
        runs[-2].key: "its log ends at 400,000 of 1,000,000 tokens",
        runs[-1].key: "no log",
    }
    table = found.runs.table.set_index("run")
    assert table["width"].tolist() == [run.width for run in runs[:-2]]
    assert table["loss"].tolist() == pytest.approx([truth(run.width, run.tokens) for run in runs[:-2]])
    assert (table["flops"] == 6 * table["params"] * table["tokens"]).all()
    assert not (tmp_path / "starts.txt").exists()
    # the store takes them as done, and only the two others are run
    with Store(tmp_path / "store.db") as store:
        report = ladder.run(store, workers=0, display=None)
    assert sorted(starts(tmp_path)) == sorted(report.done) == sorted(run.key for run in runs[-2:])


def test_the_best_record_and_the_plans_tokens(trainer, tmp_path):
    for records, factor in (("last", 1.0), ("best", 0.9)):
        ladder = small(trainer, seeds=1, out=f"out {records}", records=records)
        for run in ladder.runs():
            log(tmp_path / run.out / "m.csv", run.width, run.tokens, columns="step,params,loss")
        found = ladder.collect()
        assert found.runs.columns["tokens"] == "the plan's"
        assert found.runs.table["tokens"].tolist() == [5e5, 5e5]
        expected = [factor * truth(run.width, run.tokens) for run in ladder.runs()]
        assert found.runs.table["loss"].tolist() == pytest.approx(expected)


def test_patterns_name_the_place_and_parameters_may_be_given(trainer, tmp_path):
    command = trainer.replace("{out}", "nowhere")
    ladder = small(command, logs="logs/w{width:03d}_{seed}.csv", seeds=2, params={16: 100, 32: 400})
    for run in ladder.runs():
        log(tmp_path / f"logs/w{run.width:03d}_{run.seed}.csv", run.width, run.tokens, columns="step,loss")
    found = ladder.collect()
    assert found.missing == {}
    assert found.params == {16: 100.0, 32: 400.0}
    with pytest.raises(ValueError, match=r"no parameter count is known; .*--params 16:12345"):
        small(command, logs="logs/w{width:03d}_{seed}.csv", seeds=2).collect()


def test_what_contradicts_the_plan_is_said_and_two_logs_are_refused(trainer, tmp_path):
    ladder = small(trainer, seeds=1)
    for run, reach in zip(ladder.runs(), (1.0, 1.05), strict=True):
        log(tmp_path / run.out / "m.csv", run.width, run.tokens, reach=reach)
    found = ladder.collect()
    assert found.runs.table["tokens"].tolist() == [5e5, 5.25e5]
    assert any("one log has other tokens than the plan" in note for note in found.runs.notes)
    for run in ladder.runs():
        log(tmp_path / run.out / "second.csv", run.width, run.tokens)
    with pytest.raises(ValueError, match=r"2 logs where one was looked for \(m.csv, second.csv\)"):
        ladder.collect()


# --- parameters over width ---------------------------------------------------------------------------------
@given(st.floats(0.5, 100.0), st.floats(0.0, 500.0), st.sampled_from([64, 128, 1000]))
@settings(max_examples=30, deadline=None)
def test_a_square_and_a_line_are_found_exactly(a, b, width):
    known = {w: a * w**2 + b * w for w in (8, 16, 32, 48)}
    assert params_at(width, known) == pytest.approx(a * width**2 + b * width, rel=1e-7, abs=0.5)


def test_other_growth_is_refused():
    with pytest.raises(ValueError, match=r"do not grow as a w² \+ b w: .*--target-params"):
        params_at(128, {w: w**3 for w in (16, 32, 64)})
    with pytest.raises(ValueError, match="2 widths do not tell"):
        params_at(128, {16: 100, 32: 400})
    assert params_at(32, {16: 100, 32: 401}) == 401.0


@pytest.mark.parametrize("name", ["width", "tokens", "params", "multiple"])
def test_targets_that_cannot_be(name):
    with pytest.raises(ValueError, match=f"target's {name} must be positive"):
        Goal(**{name: -1})


# --- the examples ------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "needs"), [("nanogpt_style.py", "torch"), ("trainer_llama.py", "accelerate")]
)
def test_the_examples_train_and_are_read(script, needs, tmp_path, monkeypatch):
    pytest.importorskip(needs)
    if needs == "accelerate":
        pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    command = shlex.join([sys.executable, str(EXAMPLES / script)])
    command += " --width {width} --tokens {tokens} --lr {lr} --seed {seed} --out {out}"
    ladder = CommandLadder(command, [16, 32, 48], [8192], lr=4e-3, seeds=1)
    with Store(tmp_path / "store.db") as store:
        report = ladder.run(store, workers=1, display=None)
    assert report.failed == {}
    found = ladder.collect()
    assert found.missing == {}
    assert found.runs.table["tokens"].tolist() == [8192.0] * 3
    # a byte tells at most log 256 nats; after eight updates a little has been learned, and nothing like all
    assert found.runs.table["loss"].between(2.0, math.log(256)).all()
    # blocks of one depth grow as a square and a line: the largest width follows from the others
    counted = found.params
    a, b = ((counted[32] / 32 - counted[16] / 16) / 16, 2 * counted[16] / 16 - counted[32] / 32)
    assert a * 48**2 + b * 48 == pytest.approx(counted[48], rel=1e-9)
