"""The empirical tangent kernel beside torch.func's Jacobian and its product: time, peak memory, error.

The peer is what torch's own tutorial recommends: ``vmap(jacrev)`` over samples, then one contraction. Each
note tells the peak of allocated memory of either side and the error against float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from allometry.measure import empirical_kernel
from allometry.models import GPT, GPTConfig
from benchmarks import Case


def _by_jacobian(model: nn.Module, x: Tensor, outputs: Callable[[Any], Tensor]) -> Tensor:
    values = {name: one.detach() for name, one in model.named_parameters()}

    def of_one(values: dict[str, Tensor], one: Tensor) -> Tensor:
        return outputs(torch.func.functional_call(model, values, (one[None],))).flatten()

    found = torch.func.vmap(torch.func.jacrev(of_one), in_dims=(None, 0))(values, x)
    parts = [torch.einsum("nkp,mlp->nmkl", one.flatten(2), one.flatten(2)) for one in found.values()]
    return torch.stack(parts).sum(0)


def _peak(call: Callable[[], Any]) -> float:
    """Megabytes that torch's allocator holds at most during a call."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as seen:
        call()
    held = most = 0
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    for event in sorted(events, key=lambda one: one.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most / 1e6


def _case(name: str, model: nn.Module, x: Tensor, outputs: Callable[[Any], Tensor], rounds: int = 3) -> Case:
    def ours() -> Tensor:
        return empirical_kernel(model, x, outputs=outputs)

    def peer() -> Tensor:
        return _by_jacobian(model, x, outputs)

    first, second = _peak(ours), _peak(peer)
    found = [call().double() for call in (ours, peer)]
    model.double()
    exact = empirical_kernel(model, x.double() if x.is_floating_point() else x, outputs=outputs)
    model.float()
    wrong = [float((one - exact).abs().max() / exact.abs().max()) for one in found]
    return Case(
        f"measure: tangent kernel, {name}", ours, peer, "vmap(jacrev) and einsum", 3.0, rounds=rounds,
        note=f"peak memory {first:.0f} MB against {second:.0f} MB ({second / first:.1f} times); largest "
        f"error {wrong[0]:.1e} against {wrong[1]:.1e} of the largest entry",
    )  # fmt: skip


def cases() -> list[Case]:
    """Dense, convolutional and attention models in float32 on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)

    def whole(answer: Tensor) -> Tensor:
        return answer

    def last(answer: Any) -> Tensor:
        return answer[:, -1, :4]

    dense = nn.Sequential(
        nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)
    )  # fmt: skip
    single = nn.Sequential(
        nn.Linear(64, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1)
    )  # fmt: skip
    images = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    language = GPT(GPTConfig(width=64, depth=2, context=32)).eval()
    with torch.no_grad():  # its branches begin at zero, and so would most of its gradients
        for parameter in language.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return [
        _case("3 layers of 512, 10 outputs, 32 samples", dense, torch.randn(32, 64), whole),
        _case("3 layers of 1024, 1 output, 96 samples", single, torch.randn(96, 64), whole),
        _case("4-layer convnet, 10 outputs, 32 samples", images, torch.randn(32, 3, 16, 16), whole),
        _case("2-layer GPT, 4 of its logits, 64 samples", language, torch.randint(256, (64, 32)), last),
    ]
