"""The plan: everything that timing or taste decides, decided once, before anything trains.

A plan names the text by its digest, the sizes, horizons, recipe, seeds, precision, threads, which widths are
trained as stacks, the definition of N, the smallest horizon used, the candidate laws and how one of them is
chosen. It is stored under the hash of its content. Resuming finds it again by what was asked; nothing that
happens later, a slow machine least of all, changes it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.forecast.ladder import PLANS, Ladder, new_model, new_optimizer

if TYPE_CHECKING:
    from allometry.data.corpus import Corpus

# How the law is fitted. The candidates are tried on the ladder alone: each is fitted without the largest size
# and predicts it; the one that comes closest is used. All of it stands in the plan.
LAW = {
    "candidates": ["chinchilla", "kaplan"],
    "choice": "leave the largest size out",
    "params": "non_embedding",
    "loss": "huber",
    "delta": 1e-3,
}
BUDGET_SECONDS = 8 * 60.0  # what the probe aims at for the whole job
_STACK_GAIN = 1.15  # stacks are used from this measured speed-up on


def request_of(
    sources: Sequence[str | Path] | None,
    digest: str,
    *,
    plan: str | None,
    target: float,
    tokens: int | None,
    seeds: int,
    seed: int,
    device: str,
    tokenizer: str | None,
    text_field: str,
) -> dict[str, Any]:
    """What was asked, in the form under which the plan is found again."""
    return {
        "paths": [str(Path(source).resolve()) for source in sources or ()],
        "digest": digest,
        "plan": plan,
        "target": float(target),
        "tokens": tokens,
        "seeds": seeds,
        "seed": seed,
        "device": device,
        "tokenizer": tokenizer,
        "text_field": text_field,
    }


def seeds_of(seed: int, count: int) -> list[int]:
    """The ladder's seeds; the target's is the next one. Forecasts with other seeds share none of them."""
    return [seed * 1_000 + index for index in range(count)]


def make_plan(request: Mapping[str, Any], corpus: Corpus, *, workers: int) -> dict[str, Any]:
    """Measure this machine for a few seconds and write down everything that follows from it."""
    device = resolve_device(request["device"])
    speeds: dict[str, dict[str, Any]] = {}
    name = request["plan"]
    if name is None:
        candidates = ["default", "small"] if device == "cpu" else ["large", "default", "small"]
        for name in candidates:
            speeds[name] = probe(PLANS[name], corpus.vocab_size, request, device, workers)
            if speeds[name]["seconds"] <= BUDGET_SECONDS:
                break
    elif name == "tiny":
        speeds[name] = {"dtype": "float32", "stack": {}, "seconds": None, "target_threads": 1}
    else:
        speeds[name] = probe(PLANS[name], corpus.vocab_size, request, device, workers)
    assert name is not None
    chosen = speeds[name]
    ladder = PLANS[name]
    return {
        "plan": name,
        "ladder": ladder.to_dict(),
        "corpus": {
            "paths": request["paths"],
            "digest": corpus.digest,
            "bytes": corpus.bytes,
            "files": len(corpus.files),
            "training_tokens": len(corpus.tokens("train")),
            "tokenizer": request["tokenizer"],
            "text_field": request["text_field"],
        },
        "vocab_size": corpus.vocab_size,
        "seeds": seeds_of(request["seed"], request["seeds"]),
        "target_seed": seeds_of(request["seed"], request["seeds"] + 1)[-1],
        "target": request["target"],
        "target_tokens": request["tokens"],
        "device": device,
        "dtype": chosen["dtype"],
        "workers": workers,
        "threads": 1,
        "target_threads": chosen["target_threads"],
        "stack": chosen["stack"],
        "law": LAW,
        "smallest_tokens": min(ladder.tokens),
    }


def resolve_device(device: str) -> str:
    """``auto`` is the first CUDA device where there is one, else the CPU."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def target_widths(ladder: Ladder, vocab_size: int, target: float) -> tuple[int, float]:
    """A typical target before any law is known: ``target`` times the compute, split evenly between N and D."""
    tokens = ladder.tokens[-1] * target**0.5
    width = ladder.widths[-1] * target**0.25
    return max(ladder.head_size, round(width / ladder.head_size) * ladder.head_size), tokens


def probe(
    ladder: Ladder, vocab_size: int, request: Mapping[str, Any], device: str, workers: int
) -> dict[str, Any]:
    """Seconds that the job would take, and what is fastest here: precision, threads, stacks.

    A freshly started machine can be tens of times slower for its first steps, so every measurement is warmed
    until two timings agree.
    """
    import torch

    width, tokens = target_widths(ladder, vocab_size, request["target"])
    before = torch.get_num_threads()
    try:
        if device == "cpu":
            torch.set_num_threads(1)
        singles = {w: step_seconds(ladder, w, vocab_size, device, "float32") for w in ladder.widths}
        stacks = {}
        if request["seeds"] > 1:
            stacks = {w: _stack_gain(ladder, w, vocab_size, request["seeds"], device) for w in ladder.widths}
        dtype = "float32"
        # on a CPU without matrix units bfloat16 pays from about width 256 up; below, it is not even tried
        if device != "cpu" or width >= 256:
            half = step_seconds(ladder, width, vocab_size, device, "bfloat16")
            dtype = "bfloat16" if half < 0.9 * step_seconds(ladder, width, vocab_size, device, "float32") else dtype
        threads = {1: step_seconds(ladder, width, vocab_size, device, dtype)}
        if device == "cpu" and workers > 1:
            torch.set_num_threads(workers)
            threads[workers] = step_seconds(ladder, width, vocab_size, device, dtype)
    finally:
        torch.set_num_threads(before)
    best = min(threads, key=lambda count: threads[count])
    runs = sum(
        request["seeds"] * singles[w] / max(1.0, stacks.get(w, 1.0)) * ladder.trained_tokens() for w in ladder.widths
    )
    seconds = runs / ladder.tokens_per_step / (workers if device == "cpu" else 1)
    seconds += threads[best] * tokens / ladder.tokens_per_step
    return {
        "dtype": dtype,
        "target_threads": best,
        "stack": {str(w): request["seeds"] for w, gain in stacks.items() if gain >= _STACK_GAIN},
        "seconds": seconds,
    }


def step_seconds(ladder: Ladder, width: int, vocab_size: int, device: str, dtype: str, *, limit: float = 3.0) -> float:
    """Median seconds of one training step, warm."""
    import torch

    from allometry.train.language import next_token_loss

    model, groups = new_model(ladder, width, vocab_size, 0, device=device)
    optimizer = new_optimizer(ladder, groups)
    tokens = torch.zeros(ladder.batch, ladder.context, dtype=torch.long, device=device)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = next_token_loss(model, tokens, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), ladder.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - start

    return _settled(step, limit)


def _settled(step: Any, limit: float) -> float:
    """Time of a step once three in a row agree within a fifth, or the median of the last ones at the limit."""
    end = time.monotonic() + limit
    times = [step()]
    while time.monotonic() < end:
        times.append(step())
        last = times[-5:]
        if len(times) >= 8 and max(last) < 1.2 * min(last):
            break
    return statistics.median(times[-5:])


def _stack_gain(ladder: Ladder, width: int, vocab_size: int, seeds: int, device: str) -> float:
    from allometry.train.stack import stack_speedup

    return stack_speedup(
        lambda seed: new_model(replace(ladder), width, vocab_size, seed)[0].to(device),
        seeds,
        (ladder.batch, ladder.context),
    )
