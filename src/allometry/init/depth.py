"""Depth has its own rule: each residual branch is multiplied by 1/L, and rates keep their meaning.

A residual stream adds up L branches. At initialization they are independent and their sum grows like √L, but
their *updates* all follow the gradient and point the same way: after a step the stream has moved in
proportion to L. Multiplying every branch by base_depth / L makes the movement independent of depth.

Blake Bordelon, Lorenzo Noci, Mufan Li, Boris Hanin and Cengiz Pehlevan, 2023, arXiv:2309.16620, and Greg
Yang, Dingli Yu, Chen Zhu and Soufiane Hayou, "Tensor Programs VI", 2023, arXiv:2310.02244, have the rule with
1/√L; that 1/L is the one under which blocks of several layers keep learning features is Nolan Dey and others,
2025, arXiv:2505.01618. The rates of Adam and its kin need no further change; under SGD, whose steps shrink
with the multiplier, the rates of the branches' weights are to be multiplied by L / base_depth.
"""

import re
from collections.abc import Iterable

from torch import nn

from allometry.init.multiplier import MultiplyOutput

__all__ = ["depth_scale_"]

_RECORD = "_depth_scaled"  # a plain attribute, so that copies carry it and state_dict does not


def depth_scale_(
    model: nn.Module,
    branches: str | Iterable[str] | None = None,
    *,
    depth: int | None = None,
    base_depth: int = 1,
) -> nn.Module:
    """Multiply every residual branch by ``base_depth / depth``, in place.

    Parameters
    ----------
    model : nn.Module
    branches : regular expression or several, optional
        Searched in module names; each module found must be the last of its branch, whose output is added to
        the stream: ``r"c_proj$"`` in GPT-2, ``[r"o_proj$", r"down_proj$"]`` in Llama. Without it, the blocks
        that have a float ``residual_scale`` of their own, as those of `allometry.models` do.
    depth : int, optional
        L. Without it, the number of distinct blocks, a block being what a module's name says up to its last
        number: ``h.3`` for ``h.3.mlp.c_proj``.
    base_depth : int
        The depth at which nothing changes.

    Returns
    -------
    nn.Module
        The same model.

    Raises
    ------
    ValueError
        On a second call, if nothing is found, or if a depth is not positive.

    Examples
    --------
    >>> stream = nn.ModuleList(nn.Linear(4, 4) for _ in range(8))
    >>> _ = depth_scale_(stream, r"^\\d+$", base_depth=2)  # eight branches, each multiplied by 1/4
    """
    if any(hasattr(module, _RECORD) for module in model.modules()):
        raise ValueError("this model's branches are scaled with depth already; build the model afresh")
    if base_depth < 1 or (depth is not None and depth < 1):
        raise ValueError(f"depths must be at least 1; got depth={depth!r}, base_depth={base_depth!r}")
    if branches is None:
        found = {
            n: m for n, m in model.named_modules() if isinstance(getattr(m, "residual_scale", None), float)
        }
        if not found:
            raise ValueError(
                "no block of this model has a residual_scale; name the last module of each branch "
                "with branches="
            )
    else:
        patterns = [re.compile(p) for p in ([branches] if isinstance(branches, str) else branches)]
        found = {n: m for n, m in model.named_modules() if any(p.search(n) for p in patterns)}
        if not found:
            raise ValueError(f"no module's name matches {', '.join(p.pattern for p in patterns)}")
    factor = base_depth / (depth or len({_block_of(name) for name in found}))
    for module in found.values():
        if branches is None:
            setattr(module, "residual_scale", module.residual_scale * factor)  # noqa: B010 (untyped attribute)
        elif factor != 1:
            MultiplyOutput(factor).attach(module)
    setattr(model, _RECORD, factor)
    return model


def _block_of(name: str) -> str:
    numbered = re.match(r"(.*(?:^|\.)\d+)(?:\.|$)", name)
    return numbered.group(1) if numbered else name
