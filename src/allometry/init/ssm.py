"""Perturb, then diagonalise: a diagonal form of a matrix whose own eigenvectors are useless.

Yu, Nigmetov, Morozov, Mahoney and Erichson, "Robustifying State-space Models for Long Sequences via
Approximate Diagonalization" (2023, arXiv:2310.01698).

- A small E is sought for which A + E = V Λ V⁻¹ has well-conditioned eigenvectors. The diagonal system is then
  exactly that of a matrix ‖E‖ away: its response stays near at every frequency, where dropping HiPPO's
  low-rank part leaves spikes.
- The paper does not say how poles stay in the left half plane. ‖E‖₂ below the distance of A's numerical range
  from it is a certificate; larger E get a penalty and are checked.
- Random E of equal size is the control that the paper leaves out: ``method="ginibre"``.
"""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn

from allometry.models import S4D, S5, Diagonal, hippo_legs
from allometry.optim import Role

__all__ = ["PTD", "ptd", "robustify_", "state_roles"]


class PTD(NamedTuple):
    """A + E = V Λ V⁻¹, and what is known of it.

    Attributes
    ----------
    poles : Tensor, shape (n,), complex128
        Λ.
    basis, inverse : Tensor, shape (n, n), complex128
        V with columns of unit length, and V⁻¹.
    perturbation : Tensor, shape (n, n), float64
        E.
    kappa : float
        ‖V‖₂ ‖V⁻¹‖₂.
    size : float
        ‖E‖₂, the backward error.
    bound : float
        No pole has a real part above this: the largest of A's numerical range, plus ``size``. Below 0 it is
        a certificate of stability.
    inputs : Tensor or None, shape (n,)
        V⁻¹ B.
    """

    poles: Tensor
    basis: Tensor
    inverse: Tensor
    perturbation: Tensor
    kappa: float
    size: float
    bound: float
    inputs: Tensor | None = None

    def diagonal(self) -> Diagonal:
        """One of each conjugate pair, and every real pole, for `S4D` and `S5`."""
        real = self.poles.imag.abs() <= 1e-10 * self.poles.abs()
        kept = real | (self.poles.imag > 0)
        inputs = torch.ones_like(self.poles) if self.inputs is None else self.inputs
        weight = torch.where(real, 1.0, 2.0).to(torch.float64)
        return Diagonal(self.poles[kept], inputs[kept], weight[kept], self.basis[:, kept])


def ptd(
    matrix: Tensor, inputs: Tensor | None = None, *, eps: float | None = None, rel: float = 1e-2,
    steps: int = 400, gamma: float = 0.0, max_real: float = -0.3, method: str = "optimise", seed: int = 0,
) -> PTD:  # fmt: skip
    """Eigenvalues and well-conditioned eigenvectors of a matrix near ``matrix``.

    Minimises log ‖V‖_F ‖V⁻¹‖_F + γ ‖E‖₂ / ε + 5 Σ relu(Re λ − max_real) over ‖E‖₂ ≤ ε by Adam from a tenth
    of a random E, and returns the best E that was met.

    Parameters
    ----------
    matrix : Tensor, shape (n, n)
        Real; any, not only HiPPO's.
    inputs : Tensor, shape (n,), optional
        B.
    eps : float, optional
        Largest ‖E‖₂. For HiPPO-LegS anything below ½ certifies stability.
    rel : float
        ε over ‖A‖₂ where ``eps`` is not given.
    steps : int
    gamma : float
        Price of the perturbation's size.
    max_real : float
        Real parts above it are penalised.
    method : "optimise" or "ginibre"
        The second takes a Gaussian E of norm ε as it falls.
    seed : int

    Raises
    ------
    ValueError
        Not a finite real square matrix, an unknown method, or eigenvectors that are singular all the same.

    Warns
    -----
    UserWarning
        Eigenvectors of a condition above 10⁶, which leave layers in float32 less than a digit; more than 512
        states, which take minutes.

    Examples
    --------
    >>> found = ptd(torch.tensor([[-1.0, 100.0], [0.0, -1.0]]), eps=0.1, steps=50)
    >>> found.size <= 0.1 + 1e-9, found.kappa < 100
    (True, True)
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.is_complex():
        raise ValueError(f"perturb-then-diagonalise takes a real square matrix; got {tuple(matrix.shape)}")
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError("the matrix has entries that are not finite")
    if inputs is not None and inputs.shape != matrix.shape[:1]:
        raise ValueError(f"inputs have a number for each of {len(matrix)} states; got {tuple(inputs.shape)}")
    if steps < 0:
        raise ValueError(f"steps are at least 0; got {steps}")
    if method not in ("optimise", "ginibre"):
        raise ValueError(f"method is 'optimise' or 'ginibre'; got {method!r}")
    a = matrix.detach().to(torch.float64)
    limit = rel * float(torch.linalg.matrix_norm(a, 2)) if eps is None else eps
    if not (math.isfinite(limit) and limit >= 0):
        raise ValueError(f"eps is finite and at least 0; got {limit}")
    commutator = float(torch.linalg.matrix_norm(a @ a.mT - a.mT @ a))
    if limit == 0 or commutator <= 1e-12 * float(a.square().sum()):  # normal: nothing to mend
        return _finished(a, torch.zeros_like(a), inputs)
    if len(a) > 512 and method == "optimise":
        warnings.warn(f"{steps} eigendecompositions of {len(a)} states take minutes", stacklevel=2)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(a.shape, dtype=torch.float64, generator=generator)
    start *= limit / torch.linalg.matrix_norm(start, 2)
    if method == "ginibre":
        return _finished(a, start, inputs)
    return _finished(a, _optimised(a, 0.1 * start, limit, steps, gamma, max_real), inputs)


def _optimised(a: Tensor, start: Tensor, limit: float, steps: int, gamma: float, max_real: float) -> Tensor:
    e = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([e], lr=0.02 * limit / math.sqrt(len(a)))
    best, kept = math.inf, start
    for step in range(steps + 1):
        values, basis = torch.linalg.eig(a + e)  # columns of unit length: the loss does not see their phase
        kappa = torch.linalg.matrix_norm(basis) * torch.linalg.matrix_norm(torch.linalg.inv(basis))
        loss = kappa.log() + 5 * torch.relu(values.real - max_real).sum()
        if gamma:
            loss = loss + gamma * torch.linalg.matrix_norm(e, 2) / limit
        value = float(loss.detach())
        if math.isfinite(value) and value < best:
            best, kept = value, e.detach().clone()
        if step == steps or not math.isfinite(value):
            break
        (e.grad,) = torch.autograd.grad(loss, e)
        optimizer.step()
        with torch.no_grad():
            e *= min(1.0, limit / float(torch.linalg.matrix_norm(e, 2)))
    return kept


def _finished(a: Tensor, e: Tensor, inputs: Tensor | None) -> PTD:
    poles, basis = torch.linalg.eig(a + e)
    kappa = float(torch.linalg.cond(basis))
    if not kappa < 1e14:
        raise ValueError(
            f"the eigenvectors are singular to working precision (condition {kappa:.1g}); allow a larger eps"
        )
    if kappa > 1e6:
        warnings.warn(
            f"the eigenvectors have a condition of {kappa:.1g}, which leaves a layer in float32 less than a "
            "digit; allow a larger eps", stacklevel=3,
        )  # fmt: skip
    inverse = torch.linalg.inv(basis)
    size = float(torch.linalg.matrix_norm(e, 2)) if e.any() else 0.0
    reach = float(torch.linalg.eigvalsh((a + a.mT) / 2).max())
    b = None if inputs is None else inverse @ inputs.to(inverse.dtype)
    return PTD(poles, basis, inverse, e, kappa, size, reach + size, b)


def robustify_(
    model: nn.Module, *, eps: float | None = None, rel: float = 1e-2, steps: int = 400, seed: int = 0
) -> nn.Module:
    """Start every `S4D` of a model from HiPPO-LegS by perturb-then-diagonalise instead (S4-PTD).

    Poles, inputs and readouts are new; steps Δ and feed-through stay. To be called before training and before
    an optimizer is made: real poles change the number that is stored.

    Parameters
    ----------
    model : nn.Module
        Itself an `S4D`, or with some inside.
    eps, rel, steps, seed
        As for `ptd`; readouts are drawn anew for every layer.

    Raises
    ------
    ValueError
        There is no `S4D` in the model.

    Examples
    --------
    >>> layer = robustify_(S4D(2, 8), eps=0.45, steps=20)
    >>> layer(torch.zeros(1, 10, 2)).shape
    torch.Size([1, 10, 2])
    """
    layers = [one for one in model.modules() if isinstance(one, S4D)]
    if not layers:
        raise ValueError("there is no S4D layer in the model to start anew")
    made: dict[int, Diagonal] = {}
    for place, layer in enumerate(layers):
        n = 2 * layer.inputs.shape[1]
        if n not in made:
            matrix, inputs, _ = hippo_legs(n)
            made[n] = ptd(matrix, inputs, eps=eps, rel=rel, steps=steps, seed=seed).diagonal()
        system, steps_between = layer.system, layer.system.steps().detach()
        new = S4D(
            layer.d_model, init=made[n], disc=system.disc, real_transform=system.real_transform,
            dt=(float(steps_between.min()), float(steps_between.max())), bidirectional=layer.bidirectional,
            bandlimit=layer.bandlimit, generator=torch.Generator().manual_seed(seed + place),
        ).to(layer.skip)  # fmt: skip
        new.system.log_step = system.log_step
        for name, parameter in new.named_parameters():  # what was frozen stays so
            parameter.requires_grad_(layer.get_parameter(name).requires_grad)
        layer.system, layer.inputs, layer.readout = new.system, new.inputs, new.readout
    return model


def state_roles(model: nn.Module, *, learning_rate: float = 0.1) -> dict[str, Role]:
    """Roles for `optim.param_groups`: poles, steps and B learn slower and never decay.

    Parameters
    ----------
    model : nn.Module
        With `S4D` or `S5` layers.
    learning_rate : float
        Multiplier; the paper has 1e-3 beside 1e-2 or 4e-3.

    Raises
    ------
    ValueError
        There is no such layer.

    Examples
    --------
    >>> sorted(state_roles(S4D(2, 8)))
    ['inputs', 'system.imaginary', 'system.log_step', 'system.real']
    """
    role = Role(learning_rate, 0.0, "state matrix")
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, S4D | S5):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad and (name == "inputs" or name.startswith("system.")):
                    found[f"{prefix}.{name}".lstrip(".")] = role
    if not found:
        raise ValueError("there is no state-space layer in the model")
    return found
