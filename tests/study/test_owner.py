"""A process is known by more than its number."""

import dataclasses
import os
import subprocess
import sys

import pytest

from allometry.study.owner import Owner


def test_a_process_is_alive_until_it_ends_even_unburied() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = Owner.of(child.pid)
    assert owner.alive() is True
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended and is still in the table
    assert owner.alive() is False
    child.wait()
    assert owner.alive() is False


def test_a_reused_number_is_another_process() -> None:
    here = Owner.here()
    assert dataclasses.replace(here, birth="1").alive() is False


def test_another_machine_cannot_be_asked() -> None:
    assert dataclasses.replace(Owner.here(), machine="elsewhere").alive() is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_with_brackets_and_spaces_is_read_rightly() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') Z 1 (', 0, 0, 0); print(flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    assert Owner.of(child.pid).alive() is True
    child.kill()
    child.communicate()
