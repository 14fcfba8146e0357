"""Exact infinite-width limits that still learn features: a linear network, and word2vec.

Greg Yang and Edward J. Hu, "Feature Learning in Infinite-Width Neural Networks", 2020. arXiv:2011.14522.

The limit of a network under maximal update is usually a set of random processes that nobody can store. For
one hidden layer without a nonlinearity it is an ordinary small network. Write the wide one as

    U = n^(-1/2) Ω U∞,   V = n^(-1/2) V∞ Ωᵀ,   Ω (n, m) of independent standard normal entries,

then f = V U x = V∞ (ΩᵀΩ/n) U∞ x, and ΩᵀΩ/n → 1. A step of SGD on (U, V) is the same step on (U∞, V∞), at the
same rate: no randomness and no width is left, only m = d + k coordinates, one for each direction in which U
and V began.

- The limit is trained with any optimizer whose step is linear in the gradients it has seen: SGD, with
  momentum and weight decay. Adam's is not, and has another limit.
- A wide member is drawn from it at any time, before training or after (`sample`); one that was drawn before
  and trained differs from one drawn after by O(n^(-1/2)).
- Where Ω is √n times an orthogonal matrix, which needs only n = m, the member *is* the limit.
"""

import math
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CBOW", "LinearMuP", "LinearNetwork", "word2vec_mup"]


class LinearNetwork(nn.Module):
    """f(x) = V (U x + α b) + α c, (B, d) -> (B, k).

    Parameters
    ----------
    hidden : Tensor, shape (n, d)
        U.
    readout : Tensor, shape (k, n)
        V.
    hidden_bias, readout_bias : Tensor, optional, shapes (n,) and (k,)
        b and c; both or neither.
    bias_multiplier : float
        α.

    Raises
    ------
    ValueError
        If shapes do not fit together.

    Examples
    --------
    >>> LinearNetwork(torch.eye(3), torch.ones(2, 3))(torch.ones(5, 3)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        hidden: Tensor,
        readout: Tensor,
        hidden_bias: Tensor | None = None,
        readout_bias: Tensor | None = None,
        *,
        bias_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        if hidden.ndim != 2 or readout.ndim != 2 or readout.shape[1] != hidden.shape[0]:
            raise ValueError(
                f"hidden is (n, d) and readout (k, n); got {tuple(hidden.shape)} and {tuple(readout.shape)}"
            )
        if (hidden_bias is None) != (readout_bias is None):
            raise ValueError("give both biases or neither")
        if hidden_bias is not None and readout_bias is not None:
            wanted, got = (hidden.shape[:1], readout.shape[:1]), (hidden_bias.shape, readout_bias.shape)
            if wanted != got:
                raise ValueError(
                    f"biases have {hidden.shape[0]} and {readout.shape[0]} entries; "
                    f"got shapes {tuple(got[0])} and {tuple(got[1])}"
                )
        self.hidden, self.readout = nn.Parameter(hidden), nn.Parameter(readout)
        self.hidden_bias = None if hidden_bias is None else nn.Parameter(hidden_bias)
        self.readout_bias = None if readout_bias is None else nn.Parameter(readout_bias)
        self.bias_multiplier = float(bias_multiplier)

    def features(self, x: Tensor) -> Tensor:
        """U x + α b, (B, ...) -> (B, n).

        In this form an entry has size n^(-1/2): √n times them are the features that stay of order one. In the
        limit their products do, which are those of the wide network's features: |√n h|²/n = |h|².
        """
        h = F.linear(x.flatten(1), self.hidden)
        return h if self.hidden_bias is None else h + self.bias_multiplier * self.hidden_bias

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, ...) -> (B, k)."""
        f = F.linear(self.features(x), self.readout)
        return f if self.readout_bias is None else f + self.bias_multiplier * self.readout_bias


class LinearMuP(LinearNetwork):
    """The one-hidden-layer linear network of infinite width, under maximal update.

    An ordinary network of hidden size d + k that starts at U = [σ_u 1 ; 0], V = [0, σ_v 1]: its first outputs
    are zero, as those of every feature-learning limit are (Corollary 3.10). Train it by SGD at the rate of
    the wide network.

    Parameters
    ----------
    d, k : int
        Input and output size.
    sigma_u, sigma_v : float
        Standard deviations of the wide network's √n U and √n V at first. MAML on Omniglot took 1 and 1/32.
    bias : float
        Multiplier α of the biases, which start at zero; 0 for none.

    Raises
    ------
    ValueError
        If a size is below 1, or a deviation or α below 0.

    Examples
    --------
    >>> limit = LinearMuP(64, 10)
    >>> bool(limit(torch.ones(2, 64)).abs().max() == 0)
    True
    >>> limit.sample(4096)(torch.ones(2, 64)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, d: int, k: int, sigma_u: float = 1.0, sigma_v: float = 1.0, *, bias: float = 0.0
    ) -> None:
        for name, size in (("d", d), ("k", k)):
            if size < 1:
                raise ValueError(f"{name} must be at least 1; got {size!r}")
        for name, value in (("sigma_u", sigma_u), ("sigma_v", sigma_v), ("bias", bias)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and at least 0; got {value!r}")
        hidden, readout = torch.zeros(d + k, d), torch.zeros(k, d + k)
        hidden[:d] = sigma_u * torch.eye(d)
        readout[:, d:] = sigma_v * torch.eye(k)
        own = (torch.zeros(d + k), torch.zeros(k)) if bias else (None, None)
        super().__init__(hidden, readout, *own, bias_multiplier=bias)

    def sample(self, width: int, generator: torch.Generator | None = None) -> LinearNetwork:
        """A network of that width, drawn from the limit as it is now.

        Parameters
        ----------
        width : int
            n.
        generator : torch.Generator, optional
            Without it a generator seeded with 0.
        """
        mixing = _drawn(width, self.hidden.shape[0], generator, self.hidden.dtype, normal=True)
        return self.mixed(mixing)

    @torch.no_grad()
    def mixed(self, mixing: Tensor) -> LinearNetwork:
        """The member of width n with a given Ω (n, d + k): U = n^(-1/2) Ω U∞, V = n^(-1/2) V∞ Ωᵀ."""
        mixing = _scaled(mixing, self.hidden, self.hidden.shape[0])
        bias = self.hidden_bias, self.readout_bias
        return LinearNetwork(
            mixing @ self.hidden,
            self.readout @ mixing.T,
            None if bias[0] is None else mixing @ bias[0],
            None if bias[1] is None else bias[1].detach().clone(),
            bias_multiplier=self.bias_multiplier,
        )


class CBOW(nn.Module):
    """Continuous bag of words with negative sampling: a one-hidden-layer linear network on word counts.

    Tomas Mikolov and others, "Distributed Representations of Words and Phrases and their Compositionality",
    2013, arXiv:1310.4546. The hidden state is the *mean* of the context's embeddings, in the gradient too.

    Parameters
    ----------
    inputs, outputs : Tensor, shape (V, D)
        Embeddings of words as context and as answers.

    Raises
    ------
    ValueError
        If their shapes differ.

    Examples
    --------
    >>> model = CBOW(torch.eye(5), torch.zeros(5, 5))
    >>> loss = model.loss(torch.tensor([[0, 1, -1]]), torch.tensor([2]), torch.tensor([[3, 4]]))
    >>> bool(loss == 3 * torch.tensor(2.0).log())
    True
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        super().__init__()
        if inputs.ndim != 2 or inputs.shape != outputs.shape:
            raise ValueError(
                "input and output embeddings share one shape (V, D); "
                f"got {tuple(inputs.shape)} and {tuple(outputs.shape)}"
            )
        self.inputs, self.outputs = nn.Parameter(inputs), nn.Parameter(outputs)

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.inputs.shape[0]

    def features(self, context: Tensor) -> Tensor:
        """Mean embedding of the context, (B, C) -> (B, D); entries of -1 are no words.

        Raises
        ------
        ValueError
            A context is empty.
        """
        there = context >= 0
        count = there.sum(1, keepdim=True)
        if not bool((count > 0).all()):
            row = int((count[:, 0] == 0).nonzero()[0])
            raise ValueError(f"context {row} has no word; leave it out of the batch")
        embedded = F.embedding(context.clamp(min=0), self.inputs)  # (B, C, D)
        return (embedded * there[..., None].to(embedded.dtype)).sum(1) / count

    def forward(self, context: Tensor, words: Tensor) -> Tensor:
        """Logits of words (B, W) in contexts (B, C), shape (B, W)."""
        return torch.einsum("bd,bwd->bw", self.features(context), F.embedding(words, self.outputs))

    def loss(self, context: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
        """Mean over the batch of -log σ(answer) - Σ log σ(-negative), in nats.

        Parameters
        ----------
        context : Tensor of integers, shape (B, C)
            -1 where there is no word.
        target : Tensor of integers, shape (B,)
        negatives : Tensor of integers, shape (B, K)
            Drawn by the caller, usually from counts to the power of 3/4. One that happens to be the answer
            counts for nothing, as in the authors' program.
        """
        logits = self(context, torch.cat([target[:, None], negatives], 1))
        there = negatives != target[:, None]
        wrong = F.softplus(logits[:, 1:]) * there.to(logits.dtype)
        return (F.softplus(-logits[:, 0]) + wrong.sum(1)).mean()

    def similarity(self, words: Tensor) -> Tensor:
        """Cosines of words (W,) with all words, shape (W, V): what analogies are read from.

        In the limit's coordinates they are those of the infinitely wide embeddings.
        """
        whole = F.normalize(self.inputs, dim=1)
        return F.normalize(F.embedding(words, self.inputs), dim=1) @ whole.T

    def sample(self, width: int, generator: torch.Generator | None = None) -> Self:
        """A model of that embedding size, drawn from this one as the limit; uniform entries at first.

        Parameters
        ----------
        width : int
            n. A fresh limit gives input embeddings of standard deviation n^(-1/2) and zero outputs.
        generator : torch.Generator, optional
            Without it a generator seeded with 0.
        """
        return self.mixed(_drawn(width, self.inputs.shape[1], generator, self.inputs.dtype, normal=False))

    @torch.no_grad()
    def mixed(self, mixing: Tensor) -> Self:
        """The member of width n with a given Ω (n, D): embeddings E = n^(-1/2) E∞ Ωᵀ."""
        mixing = _scaled(mixing, self.inputs, self.inputs.shape[1])
        return type(self)(self.inputs @ mixing.T, self.outputs @ mixing.T)


def word2vec_mup(vocabulary: int, *, output_std: float = 0.0, coordinates: int | None = None) -> CBOW:
    """Word2vec of infinite width, under maximal update: a CBOW model on one-hot coordinates.

    Input embeddings start as the identity on the first V of 2V coordinates. Output embeddings start at zero,
    or as ``output_std`` times the identity on the other V. Train it by SGD: the paper took a rate of 0.05
    with a linear decay to 1e-4 of it, weight decay 0.001, a window of 8, 25 negatives, subsampling at 1e-4.

    Parameters
    ----------
    vocabulary : int
        V. Memory grows with its square: 2 · V · 2V numbers.
    output_std : float
    coordinates : int, optional
        2V by default. While outputs start at zero the other V coordinates stay zero for good, and V will do.

    Raises
    ------
    ValueError
        If V is below 1, or there are fewer coordinates than directions.

    Examples
    --------
    >>> limit = word2vec_mup(1000, coordinates=1000)
    >>> limit.sample(64).inputs.shape
    torch.Size([1000, 64])
    """
    if vocabulary < 1:
        raise ValueError(f"vocabulary must be at least 1 word; got {vocabulary!r}")
    if not (math.isfinite(output_std) and output_std >= 0):
        raise ValueError(f"output_std must be finite and at least 0; got {output_std!r}")
    size = 2 * vocabulary if coordinates is None else coordinates
    least = 2 * vocabulary if output_std else vocabulary
    if size < least:
        raise ValueError(f"a vocabulary of {vocabulary} needs at least {least} coordinates; got {size}")
    inputs, outputs = torch.zeros(vocabulary, size), torch.zeros(vocabulary, size)
    inputs[:, :vocabulary].fill_diagonal_(1.0)
    if output_std:
        outputs[:, vocabulary : 2 * vocabulary].fill_diagonal_(output_std)
    return CBOW(inputs, outputs)


def _drawn(
    width: int, coordinates: int, generator: torch.Generator | None, dtype: torch.dtype, *, normal: bool
) -> Tensor:
    """Ω (width, coordinates) of independent entries with mean 0 and variance 1, drawn on the CPU."""
    if width < 1:
        raise ValueError(f"width must be at least 1; got {width!r}")
    generator = generator or torch.Generator().manual_seed(0)
    mixing = torch.empty(width, coordinates, dtype=dtype)
    if normal:
        return mixing.normal_(generator=generator)
    return mixing.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)


def _scaled(mixing: Tensor, weight: Tensor, coordinates: int) -> Tensor:
    """n^(-1/2) Ω, where the weight lies and in its precision."""
    if mixing.ndim != 2 or mixing.shape[1] != coordinates or not len(mixing):
        raise ValueError(f"Ω has shape (n, {coordinates}); got {tuple(mixing.shape)}")
    return mixing.to(weight) / math.sqrt(len(mixing))
