"""Windows of a token sequence, in an order that is a pure function of the seed and the step.

A batch is asked for by its step, never by how many were drawn before it, so a run that resumes, a run that
skips ahead and a run that never stopped read the same text, and the step is all the state there is.

* An epoch reads the text as windows side by side, in a random order, from a random offset: no token is read
  twice in an epoch, and window borders fall elsewhere in the next one.
* Permutation and offset come from a generator seeded by (seed, epoch). The order of windows does not depend
  on the batch size: a larger batch takes more of the same sequence. Nor does it depend on the model.
* Validation windows depend on nothing but the text, the context and their number.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class Windows:
    """Training batches without end, addressed by step.

    Parameters
    ----------
    tokens : Tensor of integers, shape (N,)
        Batches are made on its device.
    context : int
        Tokens in a window, T. A window reads T + 1 tokens: inputs, and the same moved on by one as targets.
    batch : int
        Windows in a batch, B.
    seed : int or torch.Generator
        Of a generator only its initial seed is used, so it does not matter what was drawn from it before.

    Raises
    ------
    ValueError
        If the text is too short to fill one batch with different windows.

    Examples
    --------
    >>> windows = Windows(torch.arange(1000), context=10, batch=4, seed=0)
    >>> inputs, targets = windows.batch(7)
    >>> inputs.shape, bool((targets == inputs + 1).all())
    (torch.Size([4, 10]), True)
    """

    def __init__(self, tokens: Tensor, context: int, batch: int, seed: int | torch.Generator) -> None:
        self.tokens = _checked(tokens)
        self.context = _positive("context", context)
        self.batch_size = _positive("batch", batch)
        self.seed = seed.initial_seed() if isinstance(seed, torch.Generator) else int(seed)
        # Any offset below the context must leave the last window its targets.
        self.windows_per_epoch = len(tokens) // context - 1
        if self.windows_per_epoch < batch:
            raise ValueError(
                f"{len(tokens)} tokens of training text are too few for batches of {batch} windows of "
                f"{context} tokens; at least {(batch + 1) * context} are needed: give more text, a "
                "smaller batch or a shorter context"
            )
        self._orders: dict[int, Tensor] = {}

    def __repr__(self) -> str:
        return (
            f"Windows({len(self.tokens)} tokens, context={self.context}, batch={self.batch_size}, "
            f"seed={self.seed})"
        )

    @property
    def tokens_per_epoch(self) -> int:
        """Predicted tokens in one pass over the text."""
        return self.windows_per_epoch * self.context

    @property
    def tokens_per_batch(self) -> int:
        """Predicted tokens in one batch."""
        return self.batch_size * self.context

    def epochs(self, step: int) -> float:
        """How often the text has been read when ``step`` batches have been."""
        return step * self.batch_size / self.windows_per_epoch

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each int64 of shape (B, T)."""
        return _gather(self.tokens, self.starts([step])[0], self.context)

    def batches(self, steps: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of S steps at once, each int64 of shape (S, B, T)."""
        return _gather(self.tokens, self.starts(steps), self.context)

    def starts(self, steps: Iterable[int]) -> Tensor:
        """Where the windows of S steps begin in the text, int64 of shape (S, B) on the CPU."""
        wanted = [int(step) for step in steps]
        if any(step < 0 for step in wanted):
            raise ValueError(f"step is {min(wanted)}; steps count from 0")
        first = torch.tensor(wanted, dtype=torch.int64)[:, None] * self.batch_size
        samples = first + torch.arange(self.batch_size)  # (S, B), counted from the start of the run
        epochs = samples // self.windows_per_epoch
        places = samples % self.windows_per_epoch
        starts = torch.empty_like(samples)
        for epoch in torch.unique(epochs).tolist():
            here = epochs == epoch
            starts[here] = self._order(epoch)[places[here]]
        return starts

    def _order(self, epoch: int) -> Tensor:
        """Starts of the windows of an epoch in the order of reading, shape (windows_per_epoch,)."""
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch may straddle two epochs; more are never needed together
                self._orders.pop(next(iter(self._orders)), None)
            digest = hashlib.sha256(f"windows {self.seed} {epoch}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            offset = torch.randint(self.context, (), generator=generator)
            order = torch.randperm(self.windows_per_epoch, generator=generator)
            self._orders[epoch] = offset + order * self.context
        return self._orders[epoch]


class StackedWindows:
    """R replicas' batches side by side, for models that are trained as one program.

    Parameters
    ----------
    windows : sequence of R Windows
        Of one context and one batch size; usually over one text with different seeds.

    Raises
    ------
    ValueError
        If there are none, or contexts or batch sizes differ.

    Examples
    --------
    >>> text = torch.arange(1000)
    >>> stacked = StackedWindows([Windows(text, 10, 4, seed) for seed in range(3)])
    >>> stacked.batch(0)[0].shape
    torch.Size([3, 4, 10])
    """

    def __init__(self, windows: Sequence[Windows]) -> None:
        self.windows = tuple(windows)
        shapes = {(each.context, each.batch_size) for each in self.windows}
        if len(shapes) != 1:
            raise ValueError(
                f"stacked windows need one context and one batch size; got {sorted(shapes) or 'no windows'}"
            )
        self.context, self.batch_size = shapes.pop()
        self._one_text = all(each.tokens is self.windows[0].tokens for each in self.windows)

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each int64 of shape (R, B, T)."""
        if self._one_text:
            starts = torch.cat([each.starts([step]) for each in self.windows])
            return _gather(self.windows[0].tokens, starts, self.context)
        inputs, targets = zip(*(each.batch(step) for each in self.windows), strict=True)
        return torch.stack(inputs), torch.stack(targets)

    def batches(self, steps: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets of S steps at once, each int64 of shape (S, R, B, T)."""
        wanted = list(steps)
        inputs, targets = zip(*(each.batches(wanted) for each in self.windows), strict=True)
        return torch.stack(inputs, dim=1), torch.stack(targets, dim=1)


def validation_windows(tokens: Tensor, context: int, n: int | None = None) -> tuple[Tensor, Tensor]:
    """The same windows for every run: ``n`` of them without overlap, spread evenly over the text.

    Given `Corpus.byte_lengths` in place of tokens, the second value holds the bytes behind each target, so
    that bits per byte are ``nats.sum() / (ln 2 · bytes.sum())``.

    Parameters
    ----------
    tokens : Tensor of integers, shape (N,)
    context : int
        Tokens in a window, T.
    n : int, optional
        Number of windows; without it, as many as fit.

    Returns
    -------
    inputs, targets : Tensor of int64, shape (n, T)

    Raises
    ------
    ValueError
        If fewer than ``n`` windows fit.

    Examples
    --------
    >>> validation_windows(torch.arange(101), context=10, n=3)[0][:, 0].tolist()
    [0, 45, 90]
    """
    _checked(tokens)
    fit = (len(tokens) - 1) // _positive("context", context)
    wanted = max(fit, 1) if n is None else _positive("n", n)
    if wanted > fit:
        raise ValueError(
            f"{len(tokens)} tokens of validation text are too few for {wanted} windows of {context}: "
            f"{wanted * context + 1} are needed, {max(fit, 0)} windows fit; give more text or ask for fewer"
        )
    starts = torch.arange(wanted) * (len(tokens) - 1 - context) // max(wanted - 1, 1)
    return _gather(tokens, starts, context)


def _gather(tokens: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (*starts.shape, context), in one indexing operation."""
    spans = tokens.unfold(0, context + 1, 1)[starts.to(tokens.device)].long()
    return spans[..., :-1].contiguous(), spans[..., 1:].contiguous()


def _checked(tokens: Tensor) -> Tensor:
    if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 1:
        given = (
            f"{tokens.dtype} of shape {tuple(tokens.shape)}" if isinstance(tokens, Tensor) else type(tokens)
        )
        raise TypeError(f"tokens must be a one-dimensional tensor of integers, not {given}")
    return tokens


def _positive(name: str, value: int) -> int:
    if value != int(value) or value < 1:
        raise ValueError(f"{name} is {value}; give a whole number of at least 1")
    return int(value)
