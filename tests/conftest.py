"""Shared fixtures: where published measurements lie, and one thread for every test."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of measurements published by others; the test is skipped where it is absent."""
    named = os.environ.get("ALLOMETRY_REFERENCE_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"published measurements not found at {folder} (set ALLOMETRY_REFERENCE_DATA)")
    return folder
