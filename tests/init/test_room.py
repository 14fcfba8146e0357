"""The room is cheap to enter and gives what it lists."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("room", ["init", "measure"])
def test_names_come_when_they_are_asked_for(room):
    program = (
        f"import sys, allometry.{room} as room\n"
        "assert 'torch' not in sys.modules\n"
        "assert all(getattr(room, name) is not None for name in room.__all__)\n"
        "assert sorted(room.__all__) == dir(room)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_unknown_names_are_said_to_be():
    import allometry.init
    import allometry.measure

    for room in (allometry.init, allometry.measure):
        with pytest.raises(AttributeError, match="it has"):
            room.nothing  # noqa: B018
