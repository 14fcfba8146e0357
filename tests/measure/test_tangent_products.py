"""Products and sketches against the kernel itself."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import cg, eigsh
from torch import nn

from allometry.measure import empirical_kernel, kernel_operator, sketched_kernel


def example():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2)).double()
    x = torch.randn(7, 3, dtype=torch.float64)
    return model, x, empirical_kernel(model, x)


def test_products_are_the_kernel_s():
    model, x, kernel = example()
    flat = kernel.permute(0, 2, 1, 3).reshape(14, 14).numpy()
    operator = kernel_operator(model, x)
    vector = np.random.default_rng(0).normal(size=14)
    assert np.allclose(operator @ vector, flat @ vector, rtol=1e-12)
    assert np.allclose(eigsh(operator, 2, return_eigenvectors=False), np.linalg.eigvalsh(flat)[-2:])
    solved, failed = cg(operator, flat @ vector, rtol=1e-12, maxiter=500)
    assert failed == 0
    assert np.allclose(flat @ solved, flat @ vector, rtol=1e-8)


def test_products_of_a_language_model_with_attention():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval().double()
    x = {"input_ids": torch.randint(20, (3, 5))}
    last = lambda answer: answer.logits[:, -1, :2]  # noqa: E731
    flat = empirical_kernel(model, x, outputs=last).permute(0, 2, 1, 3).reshape(6, 6).numpy()
    vector = np.arange(6.0)
    assert np.allclose(kernel_operator(model, x, outputs=last) @ vector, flat @ vector, rtol=1e-10)


@pytest.mark.parametrize(
    ("over", "reduce"), [("parameters", "full"), ("parameters", "trace"), ("outputs", "trace")]
)
def test_sketches_are_unbiased_with_the_error_that_they_tell(over, reduce):
    model, x, kernel = example()
    exact = kernel if reduce == "full" else kernel.diagonal(dim1=2, dim2=3).mean(-1)
    scores, errors = [], []
    for seed in range(40):
        found = sketched_kernel(
            model, x, probes=16, over=over, reduce=reduce, generator=torch.Generator().manual_seed(seed)
        )
        known = found.standard_error > 1e-9  # signs have a square of one: some entries are exact
        assert torch.allclose(found.kernel[~known], exact[~known], rtol=1e-9)
        scores.append(((found.kernel - exact)[known] / found.standard_error[known]).square().mean())
        errors.append(found.kernel - exact)
    assert 0.7 < float(torch.stack(scores).mean()) < 1.6  # 1 in the limit; t with 15 degrees gives 1.15
    mean = torch.stack(errors).mean(0)
    spread = torch.stack(errors).std(0) / 40**0.5
    assert float((mean.abs() / (spread + 1e-9)).max()) < 5


def test_a_sketch_of_two_sets_is_that_of_their_union():
    model, x, _ = example()
    whole = sketched_kernel(model, x, probes=4, generator=torch.Generator().manual_seed(0)).kernel
    part = sketched_kernel(model, x[:3], x[3:], probes=4, generator=torch.Generator().manual_seed(0)).kernel
    assert torch.allclose(part, whole[:3, 3:], rtol=1e-10)


def test_what_is_refused():
    model, x, _ = example()
    with pytest.raises(ValueError, match="at least 2 probes"):
        sketched_kernel(model, x, probes=1)
    with pytest.raises(ValueError, match="reduce='trace'"):
        sketched_kernel(model, x, over="outputs")
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        kernel_operator(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), x.float())
