"""A study in a file of its own belongs to its paper, and judges numbers whose drift is known."""

import numpy as np
import pandas as pd
import pytest

from allometry import papers
from allometry.papers import small_scale_output_drift as drift


def test_a_study_in_a_file_of_its_own_is_one_of_its_paper() -> None:
    assert drift.drift in papers.entry("small-scale-proxies").studies
    assert papers.study("small-scale-proxies/output-drift") is drift.drift
    assert papers.study("small-scale-proxies").name == "small-scale-proxies"


def test_a_file_that_extends_no_entry_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "extends", "no-such-paper")
    with pytest.raises(ValueError, match="extends 'no-such-paper'"):
        papers.entries()


def test_drift_is_the_log_of_its_size_at_high_rates() -> None:
    part = pd.DataFrame(
        {"arm": "base", "width": 32, "rate": [0.3, 0.01, 0.1], "log z": [-(np.e**3), 5.0, np.e**2]}
    )
    assert drift._log_drift(part, "base", 32) == pytest.approx([2.0, 3.0])
