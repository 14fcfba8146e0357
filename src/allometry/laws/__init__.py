"""Laws of scale: forms, one robust batched fit, honest intervals, and what they imply for a budget.

This room knows nothing of training.  Importing it costs NumPy alone; SciPy and pandas load where they are
used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from allometry.laws.allocate import Allocation, allocate, apportion, compute_optimal
    from allometry.laws.answers import Answer, answer
    from allometry.laws.average import Average
    from allometry.laws.compare import Backtest, aicc, backtest, compare_forms
    from allometry.laws.fit import Fit, Noise, fit
    from allometry.laws.forms import (
        BrokenPowerLaw,
        Chinchilla,
        Form,
        Kaplan,
        KaplanOffset,
        Parameter,
        PowerLaw,
        PowerLawOffset,
        get_form,
    )  # fmt: skip
    from allometry.laws.published import PublishedLaw, Recipe, published, published_laws, published_recipe
    from allometry.laws.repetition import DataConstrained
    from allometry.laws.runs import Runs, read_runs
    from allometry.laws.serving import Served, least_total, optimal_with_serving
    from allometry.laws.uncertainty import Interval, bootstrap, coverage

_HOMES = {
    "Allocation": "allocate", "allocate": "allocate", "apportion": "allocate",
    "compute_optimal": "allocate",
    "Average": "average",
    "Answer": "answers", "answer": "answers",
    "Backtest": "compare", "aicc": "compare", "backtest": "compare", "compare_forms": "compare",
    "Fit": "fit", "Noise": "fit", "fit": "fit",
    "BrokenPowerLaw": "forms", "Chinchilla": "forms", "Form": "forms", "Kaplan": "forms",
    "KaplanOffset": "forms", "Parameter": "forms", "PowerLaw": "forms", "PowerLawOffset": "forms",
    "get_form": "forms",
    "PublishedLaw": "published", "Recipe": "published", "published": "published",
    "published_laws": "published", "published_recipe": "published",
    "DataConstrained": "repetition",
    "Runs": "runs", "read_runs": "runs",
    "Served": "serving", "least_total": "serving", "optimal_with_serving": "serving",
    "Interval": "uncertainty", "bootstrap": "uncertainty", "coverage": "uncertainty",
}  # fmt: skip

__all__ = [
    "Allocation", "Answer", "Average", "Backtest", "BrokenPowerLaw", "Chinchilla", "DataConstrained", "Fit",
    "Form", "Interval", "Kaplan", "KaplanOffset", "Noise", "Parameter", "PowerLaw", "PowerLawOffset",
    "PublishedLaw", "Recipe", "Runs", "Served", "aicc", "allocate", "answer", "apportion", "backtest",
    "bootstrap", "compare_forms", "compute_optimal", "coverage", "fit", "get_form", "least_total",
    "optimal_with_serving", "published", "published_laws", "published_recipe", "read_runs",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted(__all__)


# A function that shares its file's name must be bound after the file is imported, or the file would shadow
# it.
from allometry.laws.allocate import allocate  # noqa: E402
from allometry.laws.fit import fit  # noqa: E402
from allometry.laws.published import published  # noqa: E402
