"""Laws of scale: forms, one robust batched fit, honest intervals, and what they imply for a budget.

This room knows nothing of training.  Entering it costs nothing, its files cost NumPy; SciPy and pandas load
where they are used.
"""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.laws.acceptance import AcceptanceTable
    from allometry.laws.allocate import Allocation, allocate, apportion, compute_optimal
    from allometry.laws.annealing import AnnealingLaw
    from allometry.laws.answers import Answer, answer
    from allometry.laws.average import Average
    from allometry.laws.best_k import OptimalK, optimal_k
    from allometry.laws.bounded import BoundedPowerLaw
    from allometry.laws.chance import above_chance
    from allometry.laws.circuits import BestCircuit, MultiStep, SetCurve, SoftVote
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
    from allometry.laws.further_runs import FurtherRuns, further_runs
    from allometry.laws.held_out import HeldOut, compare_laws, held_out
    from allometry.laws.law import Estimator, Law, ScalingLaw, get_law, law_names
    from allometry.laws.learning_curve import LearningCurve
    from allometry.laws.log_linear import LogLinear, LogLinearLaw
    from allometry.laws.model_size import ModelSizeCurve, model_size_curve
    from allometry.laws.multi_power import EffectiveRateLaw, MultiPowerLaw
    from allometry.laws.pool_plan import PoolPlan, plan_pools
    from allometry.laws.precision import PrecisionLaw, quantization_law
    from allometry.laws.published import PublishedLaw, Recipe, published, published_laws, published_recipe
    from allometry.laws.quotient import paired_ratio, ratio_interval
    from allometry.laws.repetition import DataConstrained
    from allometry.laws.resampling import (
        Ceiling,
        ResamplingCurve,
        ceiling,
        false_share_by_attempt,
        resampling_curve,
    )
    from allometry.laws.resampling_law import ResamplingLaw
    from allometry.laws.rounding_error import format_crossover
    from allometry.laws.runs import Runs, read_runs
    from allometry.laws.schedule import ResponseLaw
    from allometry.laws.schedule_choice import ScheduleLaw, forecast_schedule
    from allometry.laws.schedule_search import (
        best_schedule,
        horizon_losses,
        rank_schedules,
        schedule_family,
        wsd_rates,
    )
    from allometry.laws.schedule_table import schedule_table
    from allometry.laws.serving import Served, least_total, optimal_with_serving
    from allometry.laws.shape import Shape, shape
    from allometry.laws.shift import ShiftLaw, loglog_fit
    from allometry.laws.slopes import SlopeComparison, compare_slopes
    from allometry.laws.task import TaskLaw
    from allometry.laws.task_chain import TaskChain
    from allometry.laws.traces import schedule_areas
    from allometry.laws.two_types import TwoTypeModel, two_type_model
    from allometry.laws.uncertainty import Interval, bootstrap, coverage
    from allometry.laws.utility import UtilityLaw
    from allometry.laws.weak_to_strong import WeakToStrong, weak_to_strong
    from allometry.laws.worth import Worth, worth, worths
    from allometry.laws.worth_calibration import worth_coverage
    from allometry.laws.worth_costs import worth_table

open_room(
    __name__,
    {
        "acceptance": ["AcceptanceTable"],
        "annealing": ["AnnealingLaw"],
        "multi_power": ["EffectiveRateLaw", "MultiPowerLaw"],
        "schedule": ["ResponseLaw"],
        "schedule_choice": ["ScheduleLaw", "forecast_schedule"],
        "schedule_search": ["best_schedule", "horizon_losses", "rank_schedules", "schedule_family",
            "wsd_rates"],
        "schedule_table": ["schedule_table"],
        "traces": ["schedule_areas"],
        "allocate": ["Allocation", "allocate", "apportion", "compute_optimal"],
        "answers": ["Answer", "answer"],
        "average": ["Average"],
        "bounded": ["BoundedPowerLaw"],
        "best_k": ["OptimalK", "optimal_k"],
        "chance": ["above_chance"],
        "circuits": ["BestCircuit", "MultiStep", "SetCurve", "SoftVote"],
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
        "further_runs": ["FurtherRuns", "further_runs"],
        "held_out": ["HeldOut", "compare_laws", "held_out"],
        "law": ["Estimator", "Law", "ScalingLaw", "get_law", "law_names"],
        "learning_curve": ["LearningCurve"],
        "log_linear": ["LogLinear", "LogLinearLaw"],
        "model_size": ["ModelSizeCurve", "model_size_curve"],
        "pool_plan": ["PoolPlan", "plan_pools"],
        "precision": ["PrecisionLaw", "quantization_law"],
        "published": ["PublishedLaw", "Recipe", "published", "published_laws", "published_recipe"],
        "quotient": ["paired_ratio", "ratio_interval"],
        "repetition": ["DataConstrained"],
        "resampling": ["Ceiling", "ResamplingCurve", "ceiling", "false_share_by_attempt", "resampling_curve"],
        "resampling_law": ["ResamplingLaw"],
        "rounding_error": ["format_crossover"],
        "runs": ["Runs", "read_runs"],
        "serving": ["Served", "least_total", "optimal_with_serving"],
        "shape": ["Shape", "shape"],
        "shift": ["ShiftLaw", "loglog_fit"],
        "slopes": ["SlopeComparison", "compare_slopes"],
        "task": ["TaskLaw"],
        "two_types": ["TwoTypeModel", "two_type_model"],
        "task_chain": ["TaskChain"],
        "uncertainty": ["Interval", "bootstrap", "coverage"],
        "utility": ["UtilityLaw"],
        "weak_to_strong": ["WeakToStrong", "weak_to_strong"],
        "worth": ["Worth", "worth", "worths"],
        "worth_calibration": ["worth_coverage"],
        "worth_costs": ["worth_table"],
    },
)  # fmt: skip

__all__ = [
    "AcceptanceTable", "Allocation", "AnnealingLaw", "Answer", "Average", "Backtest", "BestCircuit",
    "BoundedPowerLaw", "BrokenPowerLaw", "Ceiling", "Chinchilla", "Contrast", "Crossover", "Curve",
    "CurveFits", "DataConstrained", "Effect", "EffectiveRateLaw", "Estimator", "FiellerSet", "Fit",
    "Form", "FurtherRuns", "HeldOut", "Interval", "Kaplan", "KaplanOffset", "Law", "LearningCurve",
    "LogLinear", "LogLinearLaw", "ModelSizeCurve", "MultiPowerLaw", "MultiStep", "Noise", "OptimalK",
    "Parameter", "PoolPlan", "PowerLaw", "PowerLawOffset", "PrecisionLaw", "PublishedLaw", "Recipe",
    "Regions", "ResamplingCurve", "ResamplingLaw", "ResponseLaw", "Runs", "ScalingLaw", "ScheduleLaw",
    "Served", "SetCurve", "Shape", "ShiftLaw", "SlopeComparison", "SoftVote", "TaskChain", "TaskLaw",
    "TwoTypeModel", "UtilityLaw", "WeakToStrong", "Worth", "above_chance", "aicc", "allocate", "answer",
    "apportion", "backtest", "best_schedule", "bootstrap", "ceiling", "compare_forms", "compare_laws",
    "compare_slopes", "compute_optimal", "contrast", "coverage", "crossover", "false_share_by_attempt",
    "fieller", "fit", "fit_curves", "forecast_schedule", "format_crossover", "further_runs", "get_form",
    "get_law", "held_out", "holm", "horizon_losses", "interaction", "law_names", "least_total",
    "loglog_fit", "model_size_curve", "optimal_k", "optimal_with_serving", "paired_ratio", "plan_pools",
    "published", "published_laws", "published_recipe", "quantization_law", "rank_correlation",
    "rank_schedules", "ratio_interval", "read_runs", "regions", "resampling_curve", "schedule_areas",
    "schedule_family", "schedule_table", "shape", "sign_test", "slope", "two_type_model",
    "weak_to_strong", "worth", "worth_coverage", "worth_table", "worths", "wsd_rates",
]  # fmt: skip
