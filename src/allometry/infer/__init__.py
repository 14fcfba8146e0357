"""Inference: sampling a model until it passes, verifiers that may err, strategies that spend samples."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.infer.best_of import Abstain, Answer, best_of, budget_from, measure_acceptance
    from allometry.infer.pass_until import pass_until
    from allometry.infer.sampling import HFSampler, Sampler, TokenSampler, draw_many
    from allometry.infer.verifier import PythonParses, Threshold, UnitTests, Verifier, flip_rate

open_room(
    __name__,
    {
        "best_of": ["Abstain", "Answer", "best_of", "budget_from", "measure_acceptance"],
        "pass_until": ["pass_until"],
        "sampling": ["HFSampler", "Sampler", "TokenSampler", "draw_many"],
        "verifier": ["PythonParses", "Threshold", "UnitTests", "Verifier", "flip_rate"],
    },
)

__all__ = [
    "Abstain", "Answer", "HFSampler", "PythonParses", "Sampler", "Threshold", "TokenSampler", "UnitTests",
    "Verifier", "best_of", "budget_from", "draw_many", "flip_rate", "measure_acceptance", "pass_until",
]  # fmt: skip
