"""How a network begins: parametrizations that keep their meaning across width and depth."""

from typing import TYPE_CHECKING

from allometry.rooms import open_room

if TYPE_CHECKING:
    from allometry.init.depth import depth_scale_
    from allometry.init.limits import CBOW, LinearMuP, LinearNetwork, word2vec_mup
    from allometry.init.mup import apply_, roles
    from allometry.init.parametrization import ABC, ABCReport, ntk_parametrize_
    from allometry.init.ssm import PTD, ptd, robustify_, state_roles
    from allometry.init.widths import WidthInfo, width_dims

open_room(
    __name__,
    {
        "depth": ["depth_scale_"],
        "limits": ["CBOW", "LinearMuP", "LinearNetwork", "word2vec_mup"],
        "mup": ["apply_", "roles"],
        "parametrization": ["ABC", "ABCReport", "ntk_parametrize_"],
        "ssm": ["PTD", "ptd", "robustify_", "state_roles"],
        "widths": ["WidthInfo", "width_dims"],
    },
)

__all__ = [
    "ABC", "CBOW", "PTD", "ABCReport", "LinearMuP", "LinearNetwork", "WidthInfo", "apply_",
    "depth_scale_", "ntk_parametrize_", "ptd", "robustify_", "roles", "state_roles", "width_dims",
    "word2vec_mup",
]  # fmt: skip
