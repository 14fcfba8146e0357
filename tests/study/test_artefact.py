"""Costly things are made once, whoever asks and however many at once."""

import subprocess
import sys

import pytest

from allometry.study.artefact import artefact


def numbers(directory, size):
    (directory / "numbers.txt").write_text("1 " * size)


def test_one_key_is_made_once_and_another_anew(tmp_path):
    calls = []

    def counted(directory, size):
        calls.append(size)
        numbers(directory, size)

    first = artefact("numbers", counted, folder=tmp_path, size=3)
    assert artefact("numbers", counted, folder=tmp_path, size=3) == first
    assert artefact("numbers", counted, folder=tmp_path, size=4) != first
    assert calls == [3, 4]
    assert (first / "numbers.txt").read_text() == "1 1 1 "


def test_nothing_of_a_call_that_fails_is_kept(tmp_path):
    def half(directory, size):
        numbers(directory, size)
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        artefact("numbers", half, folder=tmp_path, size=3)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_processes_that_want_it_at_once_make_it_once(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, time, os\n"
        "from allometry.study.artefact import artefact\n"
        "def make(directory):\n"
        "    time.sleep(0.3)\n"
        "    (directory / str(os.getpid())).touch()\n"
        "print(artefact('slow', make, folder=sys.argv[1]))\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path / "out")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    places = {process.communicate(timeout=120)[0].strip() for process in started}
    assert len(places) == 1
    (place,) = places
    made_by = [path.name for path in (tmp_path / "out" / place.rsplit("/", 1)[-1]).iterdir()]
    assert len(made_by) == 1
