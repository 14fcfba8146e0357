"""Verifiers: programs that pass, fail, hang, cheat or crash."""

import os
import time

import numpy as np
import pytest

pytest.importorskip("torch")

from allometry.infer import PythonParses, Threshold, UnitTests, flip_rate


def test_programs_pass_where_their_tests_do():
    verify = UnitTests(["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"])
    bodies = ["return a + b", "return b + a", "return 3", "return a +", "raise SystemExit", "return a + b"]
    told = verify("def add(a, b):\n    ", bodies)
    assert told.tolist() == [True, False, False, False, False, True]
    assert told.dtype == bool


@pytest.mark.parametrize(
    "body",
    ["import sys; sys.exit(0)", "import os; os._exit(0)", "print('passed')", "pass", "x = bytearray(1 << 32)",
     "while True: pass", "import time; time.sleep(9)"],
)  # fmt: skip
def test_a_program_that_ends_early_hangs_or_grows_is_rejected(body):
    verify = UnitTests("assert False", timeout=2.0, memory=1 << 28)
    begin = time.monotonic()
    assert verify("", [body]).tolist() == [False]
    assert time.monotonic() - begin < 8.0


def test_what_is_rejected_for_memory_passes_with_more():
    body = "x = bytearray(1 << 27)"
    assert not UnitTests("assert x", 20.0, memory=1 << 27)("", [body])[0]
    assert UnitTests("assert len(x)", 20.0, memory=1 << 29)("", [body])[0]


def test_what_a_program_started_ends_with_it(tmp_path):
    note = tmp_path / "late.txt"
    late = f"import time; time.sleep(3); open({str(note)!r}, 'w')"
    body = f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {late!r}])\n"
    UnitTests("assert True", timeout=5.0)("", [body])
    time.sleep(4)
    assert not note.exists()


def test_each_different_program_runs_once(tmp_path):
    note = tmp_path / "runs"
    body = f"open({str(note)!r}, 'a').write('x')"
    told = UnitTests("assert True", workers=2)("", [body] * 5 + ["pass"])
    assert told.all()
    assert note.read_text() == "x"


def test_cases_may_depend_on_the_prompt_and_programs_see_no_environment(monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "1")
    verify = UnitTests(lambda prompt: f"assert f() == {len(prompt)}")
    assert verify("def f(): ", ["return 9", "return 8"]).tolist() == [True, False]
    told = UnitTests("import os; assert 'SECRET_OF_MINE' not in os.environ")("", ["pass"])
    assert told[0]
    assert os.environ["SECRET_OF_MINE"] == "1"


def test_python_is_what_the_compiler_takes():
    told = PythonParses()(
        "x = ", ["1", "(", b"1", b"\xff", "1\x00", "(" * 500 + ")" * 500, "'\\d'", "yield 1"]
    )
    assert told.tolist() == [True, False, True, False, False, False, True, False]


def test_a_threshold_is_met_or_not_and_nothing_is_not():
    verify = Threshold(lambda prompt, completions: np.array([0.2, 0.5, np.nan]), 0.5)
    assert verify("", "abc").tolist() == [False, True, False]


def test_flips_are_counted():
    generator = np.random.default_rng(0)
    noisy = lambda prompt, completions: generator.random(len(completions)) < 0.3  # noqa: E731
    rate = flip_rate(noisy, "", range(4000), repeats=5)
    assert rate == pytest.approx(2 * 0.3 * 0.7, abs=0.015)
    assert flip_rate(PythonParses(), "", ["x", "x ="]) == 0.0


def test_what_cannot_be_is_refused():
    for make, said in (
        (lambda: UnitTests([]), "at least one case"),
        (lambda: UnitTests("x", timeout=0), "timeout must be positive"),
        (lambda: UnitTests(lambda prompt: "")("p", ["q"]), "no cases for the prompt"),
        (lambda: Threshold(len, float("nan")), "not a number"),
        (lambda: Threshold(lambda p, c: [1.0], 0)("", ["a", "b"]), "one score a completion"),
        (lambda: flip_rate(PythonParses(), "", ["x"], repeats=1), "two calls"),
    ):
        with pytest.raises(ValueError, match=said):
            make()
