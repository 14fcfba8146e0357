"""A store in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from allometry.study import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "jobs" / "store.db") as opened:
        yield opened
