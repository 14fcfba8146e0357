"""The plan: everything that timing or taste decides, decided once, before anything trains.

A plan names the text by its digest, the sizes, horizons, recipe, seeds, precision, threads, which widths are
trained as stacks, the definition of N, the smallest horizon used, the candidate laws and how one of them is
chosen. It is stored under the hash of its content. Resuming finds it again by what was asked; nothing that
happens later, a slow machine least of all, changes it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allometry.forecast.ladder import PLANS, Ladder, new_model, new_optimizer

if TYPE_CHECKING:
    from allometry.data.corpus import Corpus

# How the law is fitted. Both candidates have a floor; they differ in whether size and data interact, and a
# ladder can hardly tell them apart, while beyond it they part. So both count, each as much as the other,
# unless one, fitted without the largest size, foretells it more than `margin` times worse than the other.
# The noise is that of the law which leaves least, for a law that fits worse takes its misfit for noise. Least
# squares, because with a dozen runs a nearly absolute loss hangs on a few of them. It stands in the plan
# before anything trains.
LAW = {
    "candidates": ["kaplan-offset", "chinchilla"],
    "choice": "average of those that foretell the largest size from the smaller ones",
    "margin": 3.0,
    "params": "non_embedding",
    "loss": "squared",
    "noise": "of the law that leaves least",
}
BUDGET_SECONDS = 10 * 60.0  # what the probe aims at for the whole job
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
        speeds[name] = {
            "dtype": "float32",
            "stacked_widths": [],
            "target_stacked": False,
            "target_threads": 1,
        }
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
        "stacked_widths": chosen["stacked_widths"],
        "target_stacked": chosen["target_stacked"],
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


def typical_target(ladder: Ladder, target: float) -> tuple[int, float]:
    """Width and tokens before any law is known: ``target`` times the compute, split evenly over N and D."""
    tokens = ladder.tokens[-1] * target**0.5
    width = ladder.widths[-1] * target**0.25
    return max(ladder.head_size, round(width / ladder.head_size) * ladder.head_size), tokens


def probe(
    ladder: Ladder, vocab_size: int, request: Mapping[str, Any], device: str, workers: int
) -> dict[str, Any]:
    """Seconds that the job would take, and what is fastest here: precision, threads, stacks.

    A freshly started machine can be tens of times slower for its first steps, so every measurement is warmed
    until its timings agree.
    """
    import torch

    width, tokens = typical_target(ladder, request["target"])
    before = torch.get_num_threads()

    def seconds(width: int, *, seeds: int = 0, dtype: str = "float32", threads: int = 1) -> float:
        if device == "cpu":
            torch.set_num_threads(threads)
        return step_seconds(ladder, width, vocab_size, device, dtype, seeds=seeds)

    try:
        # on a CPU bfloat16 pays from about width 256 up at the earliest; below it is not even tried
        dtype = "float32"
        if device != "cpu" or width >= 256:
            dtype = min(("float32", "bfloat16"), key=lambda kind: seconds(width, dtype=kind))
        alone = {w: seconds(w, dtype=dtype) for w in ladder.widths}
        stackable = dtype == "float32"
        stacks = {
            w: seconds(w, seeds=request["seeds"]) / request["seeds"] for w in ladder.widths if stackable
        }
        counts = [1] if device != "cpu" or workers == 1 else [1, workers]
        ways = [(stacked, count) for stacked in (False, True)[: 1 + stackable] for count in counts]
        target = {way: seconds(width, seeds=int(way[0]), dtype=dtype, threads=way[1]) for way in ways}
    finally:
        torch.set_num_threads(before)
    best = min(target, key=lambda way: target[way])
    stacked = [w for w in ladder.widths if w in stacks and alone[w] / stacks[w] >= _STACK_GAIN]
    step = {w: stacks[w] if w in stacked else alone[w] for w in ladder.widths}
    steps = request["seeds"] * ladder.trained_tokens() / ladder.tokens_per_step
    total = sum(step.values()) * steps / (workers if device == "cpu" else 1)
    return {
        "dtype": dtype,
        "stacked_widths": stacked,
        "target_stacked": best[0],
        "target_threads": best[1],
        "seconds": total + target[best] * tokens / ladder.tokens_per_step,
    }


def step_seconds(
    ladder: Ladder,
    width: int,
    vocab_size: int,
    device: str,
    dtype: str,
    *,
    seeds: int = 0,
    limit: float = 3.0,
) -> float:
    """Seconds of a warm training step of one model, or of a stack of ``seeds`` where that is not 0."""
    import torch

    from allometry.train.language import next_token_loss

    tokens = torch.zeros(ladder.batch, ladder.context, dtype=torch.long, device=device)
    model: torch.nn.Module = new_model(ladder, width, vocab_size, 0, device=device)
    if seeds:
        from allometry.train.stack import Stack

        model = Stack([new_model(ladder, width, vocab_size, seed, device=device) for seed in range(seeds)])
        optimizer: torch.optim.Optimizer = model.optimizer(lambda member: new_optimizer(ladder, member))
        tokens = tokens.expand(seeds, *tokens.shape)
    else:
        optimizer = new_optimizer(ladder, model)
    trained = list(model.parameters())
    clip = getattr(model, "clip_grad_norm", None) or partial(torch.nn.utils.clip_grad_norm_, trained)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = next_token_loss(model, tokens, tokens).sum()
        loss.backward()
        clip(ladder.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - start

    return _settled(step, limit)


def _settled(step: Callable[[], float], limit: float) -> float:
    """Time of a step once five in a row agree within a fifth, or the median of the last five at the limit."""
    end = time.monotonic() + limit
    times = [step()]
    while time.monotonic() < end:
        times.append(step())
        last = times[-5:]
        if len(times) >= 8 and max(last) < 1.2 * min(last):
            break
    return statistics.median(times[-5:])
