"""Curvature beside hessian-eigenthings, curvlinops and SciPy's Lanczos: one matrix, and many batches."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from allometry import data, measure, models
from allometry.models.start import start_
from benchmarks import Case

_PRODUCTS, _STEPS = 20, 15


def _trained(model: nn.Module, pad: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """After an epoch on digits: a spectrum such as networks have."""
    found = data.digits(1536, pad=pad)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    for x, y in zip(found.images.split(64), found.labels.split(64), strict=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, (found.images, found.labels)


def _perceptron() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return _trained(models.MLP(64, 10, width=48, depth=2, activation="gelu", generator=generator), 0)


def _convolutions() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    with torch.device("meta"):
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.GELU(),
            nn.Flatten(), nn.Linear(256, 32), nn.GELU(), nn.Linear(32, 10),
        )  # fmt: skip
    return _trained(start_(model, torch.Generator().manual_seed(0)), 3)


def _tokens() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    config = models.GPTConfig(width=64, depth=2, context=32, head_size=16)
    x = torch.randint(0, 256, (32, 32), generator=generator)
    return models.GPT(config, generator=generator), (x, x.roll(-1, 1))


def _loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, -2), target.flatten())


def _many(product: Callable[[Tensor], Any], dim: int) -> Callable[[], None]:
    vectors = torch.randn(_PRODUCTS, dim, generator=torch.Generator().manual_seed(1))

    def run() -> None:
        for v in vectors:
            product(v)

    return run


def _ours(model: nn.Module, batches: list[Any], operator: str, keep: bool) -> Callable[[], None]:
    """Making the operator is part of it."""
    dim = sum(p.numel() for p in model.parameters())

    def run() -> None:
        one = measure.CurvatureOperator(model, _loss, batches, operator=operator, keep=keep)
        _many(one, dim)()

    return run


def _eigenthings(model: nn.Module, batches: list[Any], operator: str) -> Callable[[], None]:
    peer = import_module("hessian_eigenthings")
    dim = sum(p.numel() for p in model.parameters())

    def run() -> None:
        with sdpa_kernel(SDPBackend.MATH):  # the package leaves it to its users that attention can be bent
            products()

    def products() -> None:
        if operator == "hessian":
            one = peer.HessianOperator(model, batches, peer.supervised_loss(_loss))
        else:
            one = peer.GGNOperator(
                model, batches, peer.supervised_forward, peer.supervised_loss_of_output(_loss)
            )
        _many(one.matvec, dim)()

    return run


def _curvlinops(model: nn.Module, batches: list[Any], operator: str) -> Callable[[], None]:
    peer = import_module("curvlinops")
    kind = {"hessian": peer.HessianLinearOperator, "ggn": peer.GGNLinearOperator}[operator]
    dim = sum(p.numel() for p in model.parameters())

    def run() -> None:
        one = kind(model, nn.CrossEntropyLoss(), list(model.parameters()), batches, check_deterministic=False)
        _many(lambda v: one @ v, dim)()

    return run


def _top_of_batches(make: Any, size: int, count: int, how: str) -> Callable[[], Any]:
    """The largest eigenvalue of each of many batches' Hessians, to the same tolerance."""
    model, images = make()
    drawn = measure.draw_batches(images, size, count)
    dim = sum(p.numel() for p in model.parameters())
    if how == "ours":  # from the data's own top eigenvector, which is known by then
        whole = measure.CurvatureOperator(model, _loss, images)
        top = measure.top_eigenvalues(whole, dim, 1)
        return lambda: measure.batch_eigenvalues(model, _loss, images, size, count, top=top).values
    if how == "ours, steps":

        def ours() -> Any:
            stacked = measure.StackedCurvature(model, _loss, drawn)
            start = torch.randn(count, dim, generator=torch.Generator().manual_seed(0))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that so few steps are too few
                return measure.top_eigenvalues(
                    stacked, dim, 1, start=start, tolerance=0.0, max_steps=_STEPS
                ).values

        return ours
    pairs = [(drawn[0][k], drawn[1][k]) for k in range(count)]
    if how == "eigenthings":
        peer = import_module("hessian_eigenthings")

        def theirs() -> Any:
            found = []
            for pair in pairs:
                one = peer.HessianOperator(model, [pair], peer.supervised_loss(_loss))
                found.append(
                    peer.lanczos(one, k=1, max_iter=_STEPS, which="LA", seed=0, tol=1e-3).eigenvalues[0]
                )
            return found

        return theirs
    from scipy.sparse.linalg import LinearOperator, eigsh

    def loop() -> Any:
        found = []
        for pair in pairs:  # what is usually written: twice in reverse, a batch at a time
            gradients = torch.autograd.grad(
                _loss(model(pair[0]), pair[1]), list(model.parameters()), create_graph=True
            )
            flat = torch.cat([g.flatten() for g in gradients])

            def product(v: np.ndarray, flat: Tensor = flat) -> np.ndarray:
                moved = torch.autograd.grad(
                    flat,
                    list(model.parameters()),
                    torch.from_numpy(v.ravel().astype(np.float32)),
                    retain_graph=True,
                )
                return torch.cat([g.flatten() for g in moved]).numpy()

            one = LinearOperator((dim, dim), matvec=product, dtype=np.float32)
            found.append(eigsh(one, 1, which="LA", tol=1e-3, return_eigenvectors=False)[0])
        return found

    return loop


def cases() -> list[Case]:
    """Products with one matrix, spectra, and a hundred batches' largest eigenvalues."""
    torch.set_num_threads(1)
    things = f"hessian-eigenthings {metadata.version('hessian-eigenthings')}"
    found = []
    for told, make in (
        ("perceptron", _perceptron),
        ("convolutions", _convolutions),
        ("transformer", _tokens),
    ):
        model, whole = make()
        half = len(whole[0]) // 2
        batches = [tuple(one[:half] for one in whole), tuple(one[half:] for one in whole)]
        for operator in ("hessian", "ggn"):
            if told == "transformer" and operator == "ggn":
                continue
            for keep in (True, False):
                note = "graphs kept" if keep else "memory of a batch"
                found.append(Case(
                    f"measure: {operator} products, {told}, {note}", _ours(model, batches, operator, keep),
                    _eigenthings(model, batches, operator), things, 1.0, rounds=5,
                    note=f"{_PRODUCTS} products and the making of the operator, two batches",
                ))  # fmt: skip
    try:
        linops = f"curvlinops {metadata.version('curvlinops-for-pytorch')}"
        import_module("curvlinops")
    except ImportError:
        linops = ""
    if linops:
        for told, make in (("perceptron", _perceptron), ("convolutions", _convolutions)):
            model, whole = make()
            half = len(whole[0]) // 2
            batches = [tuple(one[:half] for one in whole), tuple(one[half:] for one in whole)]
            for operator in ("hessian", "ggn"):
                found.append(Case(
                    f"measure: {operator} products, {told}", _ours(model, batches, operator, True),
                    _curvlinops(model, batches, operator), linops, 1.0, rounds=5,
                ))  # fmt: skip
    for told, make, size, target in (
        ("perceptron", _perceptron, 8, 10.0), ("perceptron", _perceptron, 64, 5.0),
        ("convolutions", _convolutions, 8, 5.0), ("convolutions", _convolutions, 64, 1.5),
    ):  # fmt: skip
        what = f"measure: top of 64 batches of {size}, {told}"
        for ours, theirs, name, note in (
            ("ours, steps", "eigenthings", things, f"{_STEPS} steps each"),
            ("ours", "scipy", f"scipy {metadata.version('scipy')} eigsh, loop", "to a residual of 1e-3"),
        ):
            pair = (_top_of_batches(make, size, 64, how) for how in (ours, theirs))
            found.append(Case(what, *pair, name, target, rounds=3, note=note))
    return found
