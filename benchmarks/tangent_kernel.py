"""The empirical tangent kernel beside torch.func's Jacobian and its product: time, peak memory, error.

The first peer is what torch's own tutorial recommends: ``vmap(jacrev)`` over samples, then one contraction.
Each note tells the peak of allocated memory of either side and the error against float64. Where nngeometry is
installed, its layerwise Gram matrix is the second peer.

How much is to be gained depends on the model. A gradient with few positions and many weights (dense layers,
the late layers of a convolutional network) need not be formed; one with many positions and few weights (a
narrow language model's) must be, and there the gain is that of half a symmetric product.
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


def peak(call: Callable[[], Any]) -> float:
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

    first, second = peak(ours), peak(peer)
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


def _beside_nngeometry(name: str, model: nn.Module, x: Tensor) -> list[Case]:
    try:
        import nngeometry
    except ImportError:
        return []
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), batch_size=len(x))

    def peer() -> Tensor:
        found: Tensor = nngeometry.GramMatrix(model, data, lambda *one: model(one[0])).data
        return found

    called = f"measure: tangent kernel, {name}, beside nngeometry"
    return [Case(called, lambda: empirical_kernel(model, x), peer, "nngeometry.GramMatrix", 1.0, rounds=5)]


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
    doubling = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(128, 256, 3, stride=2, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    points, pictures = torch.randn(32, 64), torch.randn(32, 3, 16, 16)
    return [
        _case("3 layers of 512, 10 outputs, 32 samples", dense, points, whole),
        _case("3 layers of 1024, 1 output, 96 samples", single, torch.randn(96, 64), whole),
        _case("convnet of width 32 to 256, 10 outputs, 32 samples", doubling, pictures, whole),
        _case("convnet of width 32 to 64, 10 outputs, 32 samples", images, pictures, whole),
        _case("2-layer GPT, 4 of its logits, 64 samples", language, torch.randint(256, (64, 32)), last),
        *_beside_nngeometry("3 layers of 512, 10 outputs, 32 samples", dense, points),
        *_beside_nngeometry("convnet of width 32 to 256, 10 outputs, 32 samples", doubling, pictures),
    ]
