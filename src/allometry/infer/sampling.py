"""Sampling completions from a model, for many prompts in one batch, each prompt read once.

A **sampler** is any callable ``sampler(instance, n, generator) -> Sequence[completion]``: ``n`` independent
draws for one instance. One that also has ``many(instances, counts, generator)``, a list of completions for
each instance, lets a batch be filled with draws for different instances; both samplers here have it. Further,
a sampler may tell its ``device`` (where the generator should live) and whether it is ``truncated`` (whether
some completions cannot be drawn at all).

* Each distinct prompt goes through the model once; its keys and values are then repeated for its draws.
* Prompts of different lengths share a batch without padding: the longer ones are still being read, token by
  token, while the shorter ones are already sampled. Positions stay true, so no mask is needed.
* Lanes whose completion has ended leave the batch.
* The distribution is the model's own at the temperature chosen. Nothing is cut off: a probability of exactly
  zero would make "sample until it passes" wait for ever.
* Where the answer is unique, nothing needs to be sampled: `TokenSampler.log_probability` is one pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from allometry.models.attention import KVCache

__all__ = ["HFSampler", "Sampler", "TokenSampler", "draw_many"]

_IDLE = 8  # one lane in so many may have ended before the batch is compacted: compacting copies the cache


class Sampler(Protocol):
    """What draws completions; see the module. ``sampler(instance, n, generator)`` gives n of them."""

    def __call__(self, instance: Any, n: int, generator: torch.Generator) -> Sequence[Any]: ...


def draw_many(
    sampler: Sampler, instances: Sequence[Any], counts: Sequence[int], generator: torch.Generator
) -> list[Sequence[Any]]:
    """``counts[s]`` completions for each ``instances[s]``: in one batch where the sampler can, else in turn.

    Examples
    --------
    >>> draw_many(lambda word, n, generator: [word] * n, ["a", "b"], [2, 1], torch.Generator())
    [['a', 'a'], ['b']]
    """
    many = getattr(sampler, "many", None)
    if many is not None:
        return list(many(instances, counts, generator))
    return [sampler(one, int(n), generator) for one, n in zip(instances, counts, strict=True)]


class TokenSampler:
    """Completions of a causal language model over tokens.

    Parameters
    ----------
    model : nn.Module
        Takes tokens (B, T) and gives logits (B, T, V), or an object with ``logits``; position t must not see
        what comes after it. `allometry.models.GPT` is read with a key-value cache, other modules are run
        again on the whole of each sequence for every token.
    encode, decode : callable
        Instance to token ids, and token ids to completion. By default bytes: text goes in as UTF-8,
        completions come out as ``bytes``, undecoded, so that a verifier sees what was really sampled.
    max_new_tokens : int
    temperature : float
        0 takes the most probable token (and makes the sampler ``truncated``).
    stop : int or sequence of int, optional
        A token, or a run of tokens, within the completion that ends it; left out of what is returned.

    Raises
    ------
    ValueError
        A prompt is empty, or with the completion longer than the model's context.

    Examples
    --------
    >>> from allometry.models import GPT, GPTConfig
    >>> sampler = TokenSampler(GPT(GPTConfig(width=32, depth=1, context=16)), max_new_tokens=4)
    >>> [len(one) for one in sampler("def ", 3, torch.Generator().manual_seed(0))]
    [4, 4, 4]
    """

    def __init__(
        self,
        model: nn.Module,
        encode: Callable[[Any], Sequence[int]] | None = None,
        decode: Callable[[list[int]], Any] = bytes,
        max_new_tokens: int = 64,
        temperature: float = 1.0,
        stop: int | Sequence[int] | None = None,
    ) -> None:
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        if not temperature >= 0:
            raise ValueError(f"temperature must not be negative, got {temperature}")
        self.model, self.max_new_tokens, self.temperature = model, max_new_tokens, float(temperature)
        self.encode = _bytes_of if encode is None else encode
        self.decode = decode
        self.stop = [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
        self.truncated = temperature == 0

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(iter(self.model.parameters())).device

    def __call__(self, instance: Any, n: int, generator: torch.Generator) -> list[Any]:
        return self.many([instance], [n], generator)[0]

    def many(
        self, instances: Sequence[Any], counts: Sequence[int], generator: torch.Generator
    ) -> list[list[Any]]:
        """``counts[s]`` completions for each ``instances[s]``, in as few batches as prompt lengths allow."""
        prompts = [self._prompt(one) for one in instances]
        order = sorted((s for s in range(len(prompts)) if counts[s] > 0), key=lambda s: len(prompts[s]))
        found: list[list[Any]] = [[] for _ in prompts]
        generator = _at(generator, self.device)
        with torch.no_grad(), _evaluating(self.model):
            while order:
                # a lane reads the rest of its prompt while shorter ones are sampled: not longer than that
                reach = len(prompts[order[0]]) + self.max_new_tokens
                part = [s for s in order if len(prompts[s]) <= reach]
                order = order[len(part) :]
                rows = torch.tensor([i for i, s in enumerate(part) for _ in range(int(counts[s]))])
                lanes = _Lanes(self, [prompts[s] for s in part], rows, generator)
                for i, tokens in zip(rows.tolist(), lanes.completions(), strict=True):
                    found[part[i]].append(self.decode(tokens))
        return found

    @torch.no_grad()
    def log_probability(self, instances: Sequence[Any], answers: Sequence[Any], *, batch: int = 64) -> Tensor:
        """Exact log-probability ``(S,)``, float64, that a completion begins with the answer.

        One teacher-forced pass in place of 1/p draws. With answers of ``max_new_tokens`` tokens and no stop
        it is the probability of that very completion.
        """
        if self.temperature == 0:
            raise ValueError("at temperature 0 nothing is drawn: there are no probabilities")
        prompts = [self._prompt(one) for one in instances]
        wanted = [list(self.encode(one)) for one in answers]
        with _evaluating(self.model):
            found = [
                _teacher_forced(self._logits, prompts[i : i + batch], wanted[i : i + batch], self.temperature,
                                self.device)
                for i in range(0, len(prompts), batch)
            ]  # fmt: skip
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def _prompt(self, instance: Any) -> list[int]:
        tokens = list(self.encode(instance))
        context = getattr(getattr(self.model, "config", None), "context", None)
        if not tokens:
            raise ValueError(f"the prompt {instance!r:.60} has no token to continue from")
        if context is not None and len(tokens) + self.max_new_tokens > context:
            raise ValueError(
                f"a prompt of {len(tokens)} tokens and {self.max_new_tokens} new ones are more than the "
                f"model's context of {context}; shorten one of them"
            )
        return tokens

    def _logits(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        output = self.model(tokens) if cache is None else self.model(tokens, cache)
        return getattr(output, "logits", output)


class _Lanes:
    """Draws side by side: the loop over tokens for one batch of prompts of similar length."""

    def __init__(
        self, sampler: TokenSampler, prompts: list[list[int]], rows: Tensor, generator: torch.Generator
    ) -> None:
        self.sampler, self.generator = sampler, generator
        device = sampler.device
        lengths = torch.tensor([len(one) for one in prompts])
        total = int(lengths.max()) + sampler.max_new_tokens
        padded = torch.zeros(len(prompts), total, dtype=torch.long)
        for row, tokens in zip(padded, prompts, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        rows = rows.to(device)
        self.lengths = lengths.to(device)[rows]
        self.tokens = padded.to(device)[rows]  # (R, total): prompt, then what was sampled
        self.ends = self.lengths + sampler.max_new_tokens
        self.stop = torch.tensor(sampler.stop, device=device, dtype=torch.long)
        self.at = int(lengths.min())  # the position that is decided next
        self.cache: _RowCache | None = None
        if hasattr(sampler.model, "new_cache"):
            make: Any = sampler.model.new_cache
            self.cache = _RowCache(make(0), len(prompts), total)
            first = sampler._logits(padded[:, : self.at].to(device), self.cache)[:, -1]
            self.logits, self.cache = first[rows], self.cache.rows(rows)

    def completions(self) -> list[list[int]]:
        """Token ids of every row, in order."""
        alive = torch.arange(len(self.tokens), device=self.tokens.device)
        ended = torch.zeros(len(self.tokens), dtype=torch.bool, device=self.tokens.device)
        while len(alive):
            drawn = self._choose(self._next(alive))
            at, lengths = self.at, self.lengths[alive]
            sampled = (lengths <= at) & ~ended[alive]
            here = alive[sampled]
            self.tokens[here, at] = drawn[sampled]
            over = at + 1 >= self.ends[here]
            if len(self.stop):
                begins = at + 1 - len(self.stop)
                if begins >= 0:
                    last = (self.tokens[here, begins : at + 1] == self.stop).all(dim=1)
                    last &= begins >= self.lengths[here]
                    self.ends[here] = torch.where(last, begins, self.ends[here])
                    over |= last
            ended[here[over]] = True
            self.at += 1
            going = ~ended[alive]
            idle = len(alive) - int(going.sum())
            if idle * _IDLE >= len(alive):
                alive = alive[going]
                if self.cache is not None and idle:
                    self.cache = self.cache.rows(going.nonzero()[:, 0])
        rows = self.tokens.tolist()
        spans = zip(rows, self.lengths.tolist(), self.ends.tolist(), strict=True)
        return [row[start:end] for row, start, end in spans]

    def _next(self, alive: Tensor) -> Tensor:
        """Logits (lanes, V) for the position that is decided next."""
        model = self.sampler
        if self.cache is None:
            return model._logits(self.tokens[alive, : self.at])[:, -1]
        if self.cache.length < self.at:
            self.logits = model._logits(self.tokens[alive, self.at - 1 : self.at], self.cache)[:, -1]
        return self.logits

    def _choose(self, logits: Tensor) -> Tensor:
        if self.sampler.temperature == 0:
            return logits.argmax(dim=-1)
        shares = (logits.float() / self.sampler.temperature).softmax(dim=-1)
        return torch.multinomial(shares, 1, generator=self.generator)[:, 0]


class _RowCache(KVCache):
    """A key-value cache with room for just the positions that are needed, of which rows can be picked."""

    def __init__(self, like: KVCache, batch: int, positions: int) -> None:
        layers, two, _, heads, _, head_size = like._memory.shape
        self._memory = like._memory.new_empty(layers, two, batch, heads, positions, head_size)
        self.length = 0

    def rows(self, index: Tensor) -> _RowCache:
        """A cache of these rows, repeats allowed; positions not yet written are not copied."""
        twin = _RowCache(self, len(index), self.context)
        twin._memory[..., : self.length, :] = self._memory[..., : self.length, :].index_select(2, index)
        twin.length = self.length
        return twin


class HFSampler:
    """Completions of a causal ``transformers`` model, as text.

    Parameters
    ----------
    model : transformers model with ``generate``
    tokenizer : its tokenizer
    **generate_kwargs
        For ``generate``: ``max_new_tokens``, ``temperature``, ``stop_strings`` … ``top_k``, ``top_p`` and
        their like are off unless given here, whatever the model's own generation settings say; given, they
        make the sampler ``truncated``.

    Examples
    --------
    >>> HFSampler(model, tokenizer, max_new_tokens=32)("def add(a, b):", 4, generator)  # doctest: +SKIP
    """

    _CUTS: ClassVar[dict[str, Any]] = {
        "top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0,
        "num_beams": 1,
    }  # fmt: skip

    def __init__(self, model: Any, tokenizer: Any, **generate_kwargs: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        if getattr(model.config, "is_encoder_decoder", False):
            raise ValueError(
                "HFSampler continues prompts; an encoder-decoder model answers them: give a causal one"
            )
        self.settings = {"do_sample": True, **self._CUTS, **generate_kwargs}
        cut = any(self.settings[name] not in (off, None) for name, off in self._CUTS.items())
        self.truncated = cut or not self.settings["do_sample"]
        if "stop_strings" in self.settings:
            self.settings["tokenizer"] = tokenizer
        known = (one for one in (tokenizer.pad_token_id, tokenizer.eos_token_id) if one is not None)
        self.pad = next(known, 0)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return torch.device(self.model.device)

    def __call__(self, instance: str, n: int, generator: torch.Generator) -> list[str]:
        return self.many([instance], [n], generator)[0]

    @torch.no_grad()
    def many(
        self, instances: Sequence[str], counts: Sequence[int], generator: torch.Generator
    ) -> list[list[str]]:
        """``counts[s]`` completions for each ``instances[s]`` by one call of ``generate``."""
        ids, mask = self._padded([self._tokens(one) for one in instances])
        owners = [s for s, n in enumerate(counts) for _ in range(int(n))]
        rows = torch.tensor(owners, device=self.device)
        found: list[list[str]] = [[] for _ in instances]
        if not owners:
            return found
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), _evaluating(self.model):
            torch.manual_seed(seed)  # generate draws from the global state, which is restored on leaving
            more = self._read(ids[:, :-1], mask[:, :-1], rows) if ids.shape[1] > 1 else {}
            made = self.model.generate(
                input_ids=ids[rows], attention_mask=mask[rows], pad_token_id=self.pad, **self.settings, **more
            )
        texts = self.tokenizer.batch_decode(made[:, ids.shape[1] :], skip_special_tokens=True)
        for owner, text in zip(owners, texts, strict=True):
            found[owner].append(text)
        return found

    def _read(self, ids: Tensor, mask: Tensor, rows: Tensor) -> dict[str, Any]:
        """Keys and values of all prompts but their last token, computed once each and repeated by row;
        under the name by which this release of transformers takes them."""
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        read = self.model(input_ids=ids, attention_mask=mask, position_ids=places, use_cache=True)
        name = "cache" if "cache" in read else "past_key_values"
        read[name].batch_select_indices(rows)
        return {name: read[name]}

    @torch.no_grad()
    def log_probability(self, instances: Sequence[str], answers: Sequence[str], *, batch: int = 64) -> Tensor:
        """Exact log-probability ``(S,)``, float64, that a completion begins with the answer's tokens.

        Another tokenization of the same text is another completion, and is not counted.
        """
        prompts = [self._tokens(one) for one in instances]
        wanted = [self.tokenizer(one, add_special_tokens=False)["input_ids"] for one in answers]
        temperature = float(self.settings.get("temperature") or 1.0)
        with _evaluating(self.model):
            found = [
                _teacher_forced(lambda tokens: self.model(input_ids=tokens).logits, prompts[i : i + batch],
                                wanted[i : i + batch], temperature, self.device)
                for i in range(0, len(prompts), batch)
            ]  # fmt: skip
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)

    def _tokens(self, instance: str) -> list[int]:
        tokens = list(self.tokenizer(instance)["input_ids"])
        if not tokens:
            raise ValueError(f"the prompt {instance!r:.60} has no token to continue from")
        return tokens

    def _padded(self, prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
        """Ids and mask, each (S, T), filled up on the left."""
        width = max(map(len, prompts))
        ids = [[self.pad] * (width - len(one)) + one for one in prompts]
        mask = [[0] * (width - len(one)) + [1] * len(one) for one in prompts]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)


def _teacher_forced(
    logits_of: Callable[[Tensor], Tensor],
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    temperature: float,
    device: torch.device,
) -> Tensor:
    """Log-probabilities (S,) of answers after prompts; shorter sequences are filled up behind, unseen."""
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, whole))
    tokens = torch.tensor([one + [0] * (width - len(one)) for one in whole], device=device)
    scores = logits_of(tokens[:, :-1]).double().div(temperature).log_softmax(dim=-1)
    each = scores.gather(2, tokens[:, 1:, None])[..., 0]
    place = torch.arange(1, width, device=device)
    starts = torch.tensor([len(one) for one in prompts], device=device)[:, None]
    ends = torch.tensor([len(one) for one in whole], device=device)[:, None]
    return torch.where((place >= starts) & (place < ends), each, 0.0).sum(dim=1).cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and every module's mode as it was afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _at(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator, or one on the device where it is wanted, seeded by a draw from it."""
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(device=device).manual_seed(seed)


def _bytes_of(instance: str | bytes) -> bytes:
    return instance.encode() if isinstance(instance, str) else bytes(instance)
