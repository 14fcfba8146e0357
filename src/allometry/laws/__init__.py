"""Laws of scale: forms, one robust batched fit, honest intervals, and what they imply for a budget.

This room knows nothing of training.  Entering it costs nothing, its files cost NumPy; SciPy and pandas load
where they are used.
"""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.laws.allocate import Allocation, allocate, apportion, compute_optimal
    from allometry.laws.answers import Answer, answer
    from allometry.laws.average import Average
    from allometry.laws.bounded import BoundedPowerLaw
    from allometry.laws.compare import Backtest, aicc, backtest, compare_forms
    from allometry.laws.contrast import (
        Contrast,
        Effect,
        contrast,
        holm,
        interaction,
        rank_correlation,
        sign_test,
        slope,
    )
    from allometry.laws.crossover import Crossover, crossover
    from allometry.laws.curve import Curve
    from allometry.laws.curve_fits import CurveFits, fit_curves
    from allometry.laws.curve_regions import Regions, regions
    from allometry.laws.fieller import FiellerSet, fieller
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
    )
    from allometry.laws.held_out import HeldOut, compare_laws, held_out
    from allometry.laws.law import Estimator, Law, ScalingLaw, get_law, law_names
    from allometry.laws.learning_curve import LearningCurve
    from allometry.laws.model_size import ModelSizeCurve, model_size_curve
    from allometry.laws.published import PublishedLaw, Recipe, published, published_laws, published_recipe
    from allometry.laws.repetition import DataConstrained
    from allometry.laws.runs import Runs, read_runs
    from allometry.laws.serving import Served, least_total, optimal_with_serving
    from allometry.laws.slopes import SlopeComparison, compare_slopes
    from allometry.laws.uncertainty import Interval, bootstrap, coverage
    from allometry.laws.worth import Worth, worth, worths
    from allometry.laws.worth_calibration import worth_coverage
    from allometry.laws.worth_costs import worth_table

open_room(
    __name__,
    {
        "allocate": ["Allocation", "allocate", "apportion", "compute_optimal"],
        "answers": ["Answer", "answer"],
        "average": ["Average"],
        "bounded": ["BoundedPowerLaw"],
        "compare": ["Backtest", "aicc", "backtest", "compare_forms"],
        "contrast": ["Contrast", "Effect", "contrast", "holm", "interaction", "rank_correlation", "sign_test",
            "slope"],
        "crossover": ["Crossover", "crossover"],
        "curve": ["Curve"],
        "curve_fits": ["CurveFits", "fit_curves"],
        "curve_regions": ["Regions", "regions"],
        "fieller": ["FiellerSet", "fieller"],
        "fit": ["Fit", "Noise", "fit"],
        "forms": ["BrokenPowerLaw", "Chinchilla", "Form", "Kaplan", "KaplanOffset", "Parameter", "PowerLaw",
            "PowerLawOffset", "get_form"],
        "held_out": ["HeldOut", "compare_laws", "held_out"],
        "law": ["Estimator", "Law", "ScalingLaw", "get_law", "law_names"],
        "learning_curve": ["LearningCurve"],
        "model_size": ["ModelSizeCurve", "model_size_curve"],
        "published": ["PublishedLaw", "Recipe", "published", "published_laws", "published_recipe"],
        "repetition": ["DataConstrained"],
        "runs": ["Runs", "read_runs"],
        "serving": ["Served", "least_total", "optimal_with_serving"],
        "slopes": ["SlopeComparison", "compare_slopes"],
        "uncertainty": ["Interval", "bootstrap", "coverage"],
        "worth": ["Worth", "worth", "worths"],
        "worth_calibration": ["worth_coverage"],
        "worth_costs": ["worth_table"],
    },
)  # fmt: skip

__all__ = [
    "BoundedPowerLaw", "CurveFits", "LearningCurve", "ModelSizeCurve", "Regions", "SlopeComparison",
    "compare_slopes", "fit_curves", "model_size_curve", "regions",
    "Allocation", "Answer", "Average", "Backtest", "BrokenPowerLaw", "Chinchilla", "Contrast", "Crossover",
    "Curve", "DataConstrained", "Effect", "Estimator", "FiellerSet", "Fit", "Form", "HeldOut", "Interval",
    "Kaplan", "KaplanOffset", "Law", "Noise", "Parameter", "PowerLaw", "PowerLawOffset", "PublishedLaw",
    "Recipe", "Runs", "ScalingLaw", "Served", "Worth", "aicc", "allocate", "answer", "apportion",
    "backtest", "bootstrap", "compare_forms", "compare_laws", "compute_optimal", "contrast", "coverage",
    "crossover", "fieller", "fit", "get_form", "get_law", "held_out", "holm", "interaction", "law_names",
    "least_total", "optimal_with_serving", "published", "published_laws", "published_recipe",
    "rank_correlation", "read_runs", "sign_test", "slope", "worth", "worth_coverage", "worth_table",
    "worths",
]  # fmt: skip
