"""The reference language model: a decoder-only transformer with one width dial and one depth dial.

* Root-mean-square norms with gains, before each branch and before the head.
* Rotary positions; queries and keys normalised over the head, with a learned gain a head (or a fixed one).
* Squared ReLU between the two matrices of the feed-forward branch (So and others, 2021. arXiv:2109.08668).
* Untied head; the head and the last matrix of every branch start at zero, so that the first loss is exactly
  ln(vocabulary) at every width and the residual stream starts as the embedding alone.
* No biases unless asked for. Residual branches are multiplied by ``residual_scale`` (1/L for depth transfer).
* Parameters and multiply-accumulates are known in closed form from the configuration.

Shapes: ``B`` batch, ``T`` positions, ``H`` heads, ``D`` head size, ``W`` width, ``V`` vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from allometry.models.attention import KVCache, attention, rotary, rotation_table
from allometry.models.kernels import RMSNorm, rms_norm, squared_relu


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides a :class:`GPT`'s shape and starting point.

    >>> GPTConfig(width=64, depth=3).parameters()["non_embedding"]
    147916
    """

    width: int = 64
    depth: int = 3
    head_size: int = 16
    vocab_size: int = 256
    context: int = 128
    mlp_ratio: int = 4
    activation: Literal["relu2", "gelu"] = "relu2"
    qk_norm: Literal["learned", "fixed"] | None = "learned"
    qk_gain: float = 2.0  # where the learned gain starts, or what the fixed one is
    window: int | None = None  # sliding window of attention, in positions
    bias: bool = False
    tie_embeddings: bool = False
    zero_init_outputs: bool = True
    residual_scale: float = 1.0  # multiplies every branch; 1 / depth carries rates over depth
    embedding_std: float = 0.1  # of 0.02, 0.05, 0.1, 0.2 and 1 the best at width 32 and a million bytes
    rotary_base: float = 10_000.0

    def __post_init__(self) -> None:
        for name in ("width", "depth", "head_size", "vocab_size", "context", "mlp_ratio"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.head_size:
            raise ValueError(f"width {self.width} is not a multiple of head_size {self.head_size}")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even for rotary positions, got {self.head_size}")
        if self.activation not in ("relu2", "gelu"):
            raise ValueError(f"activation must be 'relu2' or 'gelu', got {self.activation!r}")
        if self.qk_norm not in ("learned", "fixed", None):
            raise ValueError(f"qk_norm must be 'learned', 'fixed' or None, got {self.qk_norm!r}")
        if self.window is not None and self.window < 1:
            raise ValueError(f"window must be at least 1 position, or None for no window, got {self.window}")

    @classmethod
    def of(cls, depth: int, *, head_size: int = 64, **settings: object) -> GPTConfig:
        """The family with one dial: width 64 a layer, in whole heads.

        >>> GPTConfig.of(4).width
        256
        """
        width = max(1, round(64 * depth / head_size)) * head_size
        return cls(width=width, depth=depth, head_size=head_size, **settings)  # type: ignore[arg-type]

    @property
    def heads(self) -> int:
        """Number of attention heads, width / head_size."""
        return self.width // self.head_size

    def parameters(self) -> dict[str, int]:
        """Exact counts: ``total``, ``non_embedding`` (no token table, no untied head), ``head``."""
        width, hidden = self.width, self.mlp_ratio * self.width
        matrices = 4 * width * width + 2 * width * hidden
        gains = 2 * width + (self.heads if self.qk_norm == "learned" else 0)
        biases = 5 * width + hidden if self.bias else 0
        non_embedding = self.depth * (matrices + gains + biases) + width
        table = self.vocab_size * width
        head = table + (self.vocab_size if self.bias else 0)
        own = head - table if self.tie_embeddings else head  # a tied head still has a bias of its own
        return {"total": non_embedding + table + own, "non_embedding": non_embedding, "head": head}

    def macs_per_token(self) -> int:
        """Multiply-accumulates of one forward pass, a token, at full context, attention not halved."""
        width = self.width
        matrices = 4 * width * width + 2 * width * self.mlp_ratio * width
        return self.depth * (matrices + 2 * self.context * width) + self.vocab_size * width


class Attention(nn.Module):
    """One attention branch, (B, T, W) -> (B, T, W)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_size, self.layer = config.heads, config.head_size, layer
        self.window, self.qk_norm = config.window, config.qk_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.bias)
        self.out = nn.Linear(config.width, config.width, bias=config.bias)
        if config.qk_norm == "learned":
            self.gain = nn.Parameter(torch.full((config.heads,), float(config.qk_gain)))
        self.fixed_gain = float(config.qk_gain)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KVCache | None = None) -> Tensor:
        batch, length, width = x.shape
        # laid out (3, B, H, T, D) once; queries and keys take the same road, so they take it together
        qkv = (
            self.qkv(x).view(batch, length, 3, self.heads, self.head_size).permute(2, 0, 3, 1, 4).contiguous()
        )
        query_key, value = qkv[:2], qkv[2]
        if self.qk_norm is not None:
            query_key = rms_norm(query_key)
        query, key = rotary(query_key, cosine, sine).unbind(0)
        if self.qk_norm == "learned":
            query = query * self.gain[:, None, None]
        elif self.qk_norm == "fixed":
            query = query * self.fixed_gain
        if cache is not None:
            key, value = cache.append(self.layer, key, value)
        mixed = attention(query, key, value, window=self.window)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    """The feed-forward branch, (B, T, W) -> (B, T, W)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.up = nn.Linear(config.width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, config.width, bias=config.bias)
        self.squared = config.activation == "relu2"

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        return self.down(squared_relu(hidden) if self.squared else F.gelu(hidden))


class Block(nn.Module):
    """Attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config, layer)
        self.norm2 = RMSNorm(config.width, eps=1e-6)
        self.feed_forward = FeedForward(config)
        self.residual_scale = config.residual_scale

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor, cache: KVCache | None = None) -> Tensor:
        x = self._add(x, self.attention(self.norm1(x), cosine, sine, cache))
        return self._add(x, self.feed_forward(self.norm2(x)))

    def _add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch if self.residual_scale == 1.0 else torch.add(x, branch, alpha=self.residual_scale)


class GPT(nn.Module):
    """A decoder-only transformer; ``model(tokens)`` gives logits (B, T, V) for tokens (B, T).

    Parameters
    ----------
    config : GPTConfig
    generator : torch.Generator, optional
        Where the initial weights come from; without it a generator seeded with 0, never the global state.

    >>> model = GPT(GPTConfig(width=32, depth=1, context=8))
    >>> tuple(model(torch.zeros(2, 8, dtype=torch.long)).shape)
    (2, 8, 256)
    """

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: GPTConfig, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):  # nothing is drawn twice, and never from the global generator
            self.embedding = nn.Embedding(config.vocab_size, config.width)
            self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.depth))
            self.norm = RMSNorm(config.width, eps=1e-6)
            self.head = nn.Linear(config.width, config.vocab_size, bias=config.bias)
        where = torch.get_default_device()
        self.to_empty(device=where)
        if where.type != "meta":
            self._start(generator or torch.Generator(device="cpu").manual_seed(0))

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> Self:
        """As in torch; ties are tied again, and the rotary tables filled, which no state dict brings back."""
        super().to_empty(device=device, recurse=recurse)
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self._tabulate(self.embedding.weight.device)
        return self

    def _tabulate(self, device: torch.device) -> None:
        config = self.config
        with torch.device("cpu"):
            cosine, sine = rotation_table(config.context, config.head_size, config.rotary_base)
        self.register_buffer("cosine", cosine.to(device), persistent=False)
        self.register_buffer("sine", sine.to(device), persistent=False)

    @torch.no_grad()
    def _start(self, generator: torch.Generator) -> None:
        config = self.config
        outputs = {
            f"blocks.{i}.{name}"
            for i in range(config.depth)
            for name in ("attention.out", "feed_forward.down")
        }
        if not config.tie_embeddings:
            outputs.add("head")
        for name, module in self.named_modules():
            if isinstance(module, RMSNorm):
                module.weight.fill_(1.0)
            elif isinstance(module, Attention):
                if config.qk_norm == "learned":
                    module.gain.fill_(config.qk_gain)
            elif isinstance(module, nn.Embedding):
                _draw(module.weight, config.embedding_std, generator)
            elif isinstance(module, nn.Linear):
                if config.zero_init_outputs and name in outputs:
                    module.weight.zero_()
                elif module.weight is not self.embedding.weight:  # a tied head starts as the embedding
                    _draw(module.weight, 1.0 / math.sqrt(module.in_features), generator)
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits (B, T, V) for tokens (B, T) of integers; with a cache, T more positions behind it."""
        start = 0 if cache is None else cache.length
        end = start + tokens.shape[-1]
        if end > self.config.context:
            raise ValueError(f"the model reads {self.config.context} positions at once and was given {end}")
        cosine, sine = self.cosine[start:end], self.sine[start:end]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cosine, sine, cache)
        if cache is not None:
            cache.advance(tokens.shape[-1])
        return self.head(self.norm(x))

    def new_cache(self, batch: int) -> KVCache:
        """An empty cache for ``batch`` sequences, where the model lies and in its precision."""
        config, weight = self.config, self.head.weight
        return KVCache(
            config.depth, batch, config.heads, config.context, config.head_size,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip

    @torch.no_grad()
    def generate(
        self,
        prompt: Tensor,
        new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue prompts (B, T) by ``new_tokens`` each, one forward pass of one position a token.

        ``temperature`` 0 takes the most probable token. Sampling beyond the context drops the oldest half
        and reads what is left again. Returns (B, T + new_tokens).

        >>> model = GPT(GPTConfig(width=32, depth=1, context=8))
        >>> tuple(model.generate(torch.zeros(3, 2, dtype=torch.long), 10).shape)
        (3, 12)
        """
        if prompt.ndim != 2 or prompt.shape[1] < 1:
            raise ValueError(f"prompt must have shape (batch, at least one token), got {tuple(prompt.shape)}")
        if temperature < 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must keep at least one token, got {top_k}")
        if new_tokens < 0:
            raise ValueError(f"new_tokens must not be negative, got {new_tokens}")
        generator = generator or torch.Generator(device=prompt.device).manual_seed(0)
        context, tokens = self.config.context, prompt
        cache, unread = self.new_cache(len(prompt)), prompt[:, -context:]
        for _ in range(new_tokens):
            if cache.length + unread.shape[1] > context:
                cache, unread = self.new_cache(len(prompt)), tokens[:, -max(1, context // 2) :]
            logits = self(unread, cache)[:, -1]
            unread = _choose(logits, temperature, top_k, generator)
            tokens = torch.cat((tokens, unread), dim=1)
        return tokens


def _draw(weight: Tensor, std: float, generator: torch.Generator) -> None:
    # drawn on the CPU, so that one seed means one model on every device
    drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    weight.copy_(drawn.normal_(0.0, std, generator=generator))


def _choose(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -math.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)
