"""Abilities that seem to emerge were there all along, too rare to be seen: measured finely, they scale.

Shengding Hu, Xin Liu, Xu Han, Xinrong Zhang, Chaoqun He and others, 2023. arXiv:2310.03262

Byte-level GPTs of six widths, each trained on the same number of bytes of the standard library's source; two
tasks on files held out. In the first the answer is unique, so the pass rate is also known exactly, by teacher
forcing, and estimators and law are judged against the truth. In the second any line passes that, behind a
function's header, its docstring and "return", parses and calls something. The largest width is held out and
foretold. The paper's models have 0.03 to 2.4 billion parameters, its tasks are HumanEval and others; a byte
model has an irreducible entropy, so that growth slower than the law (a convex curve) was thought possible
beforehand.
"""

from __future__ import annotations

import functools
import math
from typing import Any

from allometry.papers import Paper
from allometry.study import Claim, Estimate, Profile, Result, Study, Test, axis, undecided
from allometry.study.artefact import artefact
from allometry.study.claim import SEEDS, Outcome

_WIDTHS = (16, 24, 32, 48, 64, 96)
_CONTEXT = 128
_ANSWER = 6  # bytes


# --- models and tasks ---------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1)
def _corpus() -> Any:
    from allometry.data import StandardLibrary

    return StandardLibrary()


def _config(width: int) -> Any:
    from allometry.models import GPTConfig

    return GPTConfig(width=width, depth=2, head_size=8, context=_CONTEXT)


def _train(directory: Any, width: int, seed: int, steps: int, batch: int, rate: float, digest: str) -> None:
    from safetensors.torch import save_file

    from allometry.train import train_language_model

    model, log = train_language_model(
        _config(width), _corpus(), tokens=steps * batch * _CONTEXT, seed=seed, batch=batch,
        learning_rate=rate * _WIDTHS[0] / width, warmup=max(1, steps // 20), validation_windows=64,
    )  # fmt: skip
    if log.status == "diverged":
        raise RuntimeError(f"width {width}, seed {seed} diverged")
    save_file(model.state_dict(), directory / "model.safetensors", {"loss": str(log.horizons[-1]["loss"])})


def _model(width: int, seed: int, profile: Profile) -> tuple[Any, float]:
    """A trained model and its validation loss in nats a byte; made once for all arms and both tasks."""
    return _trained(width, seed, profile.steps, profile.batch, profile.rate)


@functools.lru_cache(maxsize=4)
def _trained(width: int, seed: int, steps: int, batch: int, rate: float) -> tuple[Any, float]:
    from safetensors import safe_open

    from allometry.models import GPT

    folder = artefact(
        "passuntil-model", _train, width=width, seed=seed, steps=steps, batch=batch, rate=rate,
        digest=_corpus().digest[:16],
    )  # fmt: skip
    model = GPT(_config(width))
    with safe_open(folder / "model.safetensors", "pt") as file:
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return model, float(file.metadata()["loss"])


@functools.lru_cache(maxsize=2)
def _spans(count: int) -> tuple[tuple[bytes, bytes], ...]:
    """Prompts of 64 bytes and the six that follow, at places chosen without a model: the eight bytes before
    and the answer occur together at least eight times in the first million bytes of training text."""
    text = _corpus().tokens("train")[:1_000_000].numpy().tobytes()
    held = _corpus().tokens("validation").numpy().tobytes()
    found = []
    for i in range(64, len(held) - _ANSWER, 397):
        prompt, answer = held[i - 64 : i], held[i : i + _ANSWER]
        if b"\0" in prompt + answer or not answer.strip() or text.count(prompt[-8:] + answer) < 8:
            continue
        found.append((prompt, answer))
        if len(found) == count:
            break
    return tuple(found)


@functools.lru_cache(maxsize=2)
def _functions(count: int) -> tuple[Any, ...]:
    from allometry.data import completion_tasks

    tasks = completion_tasks(
        _corpus().documents("validation"), longest_prompt=_CONTEXT - 24, begun="    return ", wants="call"
    )
    return tuple(tasks)[:count]


def _told(counts: Any, width: int, loss: float) -> dict[str, Any]:
    """A record: what was counted of each instance, and means over them."""
    s, k = counts.successes, counts.trials
    return {
        "pass rate": float(counts.estimate().mean()), "unseen": float((s == 0).mean()), "loss": loss,
        "params": _config(width).parameters()["non_embedding"], "draws": int(counts.sampled.sum()),
        "counts": " ".join(f"{a}/{b}/{c:d}" for a, b, c in zip(s, k, counts.censored, strict=True)),
        "corpus": _corpus().digest[:12],
    }  # fmt: skip


# --- statistics of the claims -------------------------------------------------------------------------------
def _table(rows: Any) -> Any:
    """The counts of an arm's rows as a table that the law reads: a row an instance and model."""
    import pandas

    from allometry.measure import PassCounts

    parts = []
    for run, row in enumerate(rows.itertuples()):
        told = [[int(part) for part in one.split("/")] for one in row.counts.split()]
        passed, drawn, censored = zip(*told, strict=True)
        counts = PassCounts(passed, drawn, censored)
        parts.append(counts.to_frame(params=row.params, run=run))
    return pandas.concat(parts, ignore_index=True)


def _foretold(result: Result, part: Any, level: str = "instance") -> tuple[Any, float, float]:
    """The largest model's pass rate foretold from the others (95 %), what it counted, and its size."""
    from allometry.laws import TaskLaw

    rows = part[part["arm"] == "pass until"].sort_values("params")
    last = rows.iloc[-1]
    law = TaskLaw(level).fit(_table(rows.iloc[:-1]), resamples=400)  # type: ignore[arg-type]
    told = law.interval({"params": float(last["params"])}, 0.95, "prediction")
    return told, float(last["pass rate"]), float(last["params"])


def _enough_sizes(result: Result) -> Test | None:
    sizes = result.study.axes[0].values(result.profile)
    return undecided(f"{len(sizes)} sizes; a law and a model held out need 4") if len(sizes) < 4 else None


def _error(result: Result, truth: str, level: str = "instance") -> Any:
    """Relative error of -log pass rate foretold of the largest model, against an arm's, for each seed."""
    name = result.study.axes[0].name
    largest = max(result.study.axes[0].values(result.profile))

    def statistic(part: Any) -> float:
        told, _, _ = _foretold(result, part, level)
        row = part[(part["arm"] == truth) & (part[name] == largest)]
        return math.log(float(told.value[0])) / math.log(float(row["pass rate"].iloc[0])) - 1.0

    return result.each_seed(statistic, what=f"relative error of -log pass rate of the largest ({level} law)")


def _held_out_within(result: Result) -> Test:
    short = _enough_sizes(result)
    return _error(result, "exact").judge(holds=(-0.15, 0.15)) if short is None else short


def _inside(result: Result, truth: str) -> Test:
    """How many seeds' largest model lies in the interval foretold."""
    from scipy.stats import beta

    short = _enough_sizes(result)
    if short is not None:
        return short
    name = result.study.axes[0].name
    largest = max(result.study.axes[0].values(result.profile))
    hits = []
    for _, part in result.table.groupby("seed"):
        told, _, _ = _foretold(result, part)
        row = part[(part["arm"] == truth) & (part[name] == largest)]
        hits.append(bool(told.low[0] <= float(row["pass rate"].iloc[0]) <= told.high[0]))
    n, good = len(hits), sum(hits)
    low = float(beta.ppf(0.025, good, n - good + 1)) if good else 0.0
    high = float(beta.ppf(0.975, good + 1, n - good)) if good < n else 1.0
    share = Estimate(good / n, low, high, n=n, what="share of seeds whose largest model lies in its interval")
    if n < SEEDS:
        return undecided(f"{n} of the {SEEDS} seeds that decide anything stand behind it", share)
    missed = n - good
    outcome = Outcome.HOLDS if missed == 0 else Outcome.CONTRADICTED if missed >= 2 else Outcome.FALLS_SHORT
    return Test(outcome, (share,))


def _straight(result: Result) -> Test:
    """The shape of growth over all models of all seeds together."""
    from allometry.laws import TaskLaw

    short = _enough_sizes(result)
    if short is not None:
        return short
    law = TaskLaw().fit(_table(result.rows("pass until")), resamples=0)
    told = law.growth_shape()
    n = result.table["seed"].nunique()
    bend = Estimate(
        float(told.change.value), float(told.change.low), float(told.change.high), n=n,
        what=f"change of the exponent over the sizes, as a share of it (p = {told.pvalue:.2g})",
    )  # fmt: skip
    outcome = {
        "scaling": Outcome.HOLDS,
        "emerging": Outcome.CONTRADICTED,
        "sub-scaling": Outcome.CONTRADICTED,
    }
    if n < SEEDS or told.kind not in outcome:
        return undecided(f"the shape is {told.kind}", bend)
    return Test(outcome[told.kind], (bend,))


def _resolution(result: Result) -> Test:
    """Share of instances that the smallest model never passes: of a hundred draws, less until it passes."""
    smallest = min(result.study.axes[0].values(result.profile))
    gap = result.gap("100 samples", "pass until", "unseen", at={result.study.axes[0].name: smallest})
    return gap.judge(holds=(0.2, 1.0), contradicted=(-1.0, 0.0))


_RESOLUTION = Claim(
    "A hundred samples see nothing of many instances that the smallest model does pass, if rarely.",
    _resolution,
    where="pilot and section on PassUntil",
    threshold="sampling until it passes leaves 0.2 fewer of all instances unseen, at the least width",
)
_SHAPE = Claim(
    "The logarithm of minus the log pass rate is a straight line in the logarithm of size.",
    _straight,
    where="section on the task scaling law; definition 1",
    threshold="over all seeds' models: no significant curvature (5 %) and an exponent that changes by less "
    "than half of itself; contradicted by a significant curvature, whose sign says how",
)
_PROFILES = {
    "tiny": {"seeds": 1, "steps": 2, "batch": 2, "spans": 4, "functions": 2, "r": 1, "cap": 150},
    "quick": {"seeds": 1, "steps": 300, "spans": 24, "functions": 6, "cap": 1500},
    "full": {"seeds": 3, "steps": 800},
}
_SETTINGS = {"batch": 8, "rate": 2e-2, "spans": 64, "functions": 16, "r": 4, "cap": 4000}


# --- a unique answer ----------------------------------------------------------------------------------------
unique = Study(
    "passuntil/unique-answer",
    question="Do small models' pass rates foretell a larger one's, where the answer is unique?",
    arms=("100 samples", "pass until", "exact"),
    axis=axis("width", *_WIDTHS, tiny=_WIDTHS[:2], quick=_WIDTHS[:4]),
    measures=("pass rate", "unseen"),
    profiles=_PROFILES,
    settings=_SETTINGS,
    lower_is_better=False,
    weight=lambda arm, width: float(width),
    claims=[
        _RESOLUTION,
        Claim(
            "Fitted to small models' counts, instance by instance, the law foretells the largest one's rate.",
            _held_out_within,
            where="table of held-out predictions",
            threshold="minus the log of the exact mean pass rate within 15 % (95 % interval over seeds)",
        ),
        Claim(
            "The exact pass rate of the largest model lies in the interval that was foretold.",
            lambda result: _inside(result, "exact"),
            where="table of held-out predictions; the paper gives no intervals",
            threshold="in every seed; contradicted if it lies outside in two or more",
        ),
        _SHAPE,
    ],
)  # fmt: skip


@unique.trial
def _unique(arm: str, width: int, seed: int, profile: Profile) -> dict[str, Any]:
    import numpy as np

    from allometry.infer import TokenSampler, pass_until

    model, loss = _model(width, seed, profile)
    spans = _spans(profile.spans)
    sampler = TokenSampler(model, encode=lambda one: one[0], max_new_tokens=_ANSWER)
    if arm == "exact":
        answered = TokenSampler(model, max_new_tokens=_ANSWER)
        p = answered.log_probability([a for a, _ in spans], [b for _, b in spans]).exp().numpy()
        return {
            "pass rate": float(p.mean()), "unseen": 0.0, "loss": loss, "draws": 0,
            "params": _config(width).parameters()["non_embedding"], "corpus": _corpus().digest[:12],
            "rates": " ".join(f"{one:.4g}" for one in np.asarray(p)),
        }  # fmt: skip
    r, cap = (profile.r, profile.cap) if arm == "pass until" else (100, 100)
    counts = pass_until(sampler, lambda one, said: said == one[1], spans, r=r, max_samples=cap, seed=seed)
    return _told(counts, width, loss)


# --- any answer that works ----------------------------------------------------------------------------------
functions = Study(
    "passuntil/functions",
    question="Do the rates at which small models write a working line foretell a larger one's?",
    arms=("greedy", "100 samples", "pass until"),
    axis=axis("width", *_WIDTHS, tiny=_WIDTHS[:2], quick=_WIDTHS[:4]),
    measures=("pass rate", "unseen"),
    profiles=_PROFILES,
    settings=_SETTINGS,
    lower_is_better=False,
    weight=lambda arm, width: float(width),
    claims=[
        _RESOLUTION,
        Claim(
            "What is counted of the largest model lies in the interval that was foretold.",
            lambda result: _inside(result, "pass until"),
            where="table of held-out predictions; the paper gives no intervals",
            threshold="in every seed; contradicted if it lies outside in two or more",
        ),
        _SHAPE,
    ],
)  # fmt: skip


@functions.trial
def _write(arm: str, width: int, seed: int, profile: Profile) -> dict[str, Any]:
    from allometry.infer import TokenSampler, pass_until

    model, loss = _model(width, seed, profile)
    sampler = TokenSampler(
        model, encode=lambda task: task.prompt.encode(), max_new_tokens=24, stop=ord("\n"),
        temperature=0.0 if arm == "greedy" else 1.0,
    )  # fmt: skip
    r, cap = {"greedy": (1, 1), "100 samples": (100, 100), "pass until": (profile.r, profile.cap // 2)}[arm]
    counts = pass_until(
        sampler, lambda task, said: task.passes(said), _functions(profile.functions), r=r, max_samples=cap,
        seed=seed, allow_truncated=arm == "greedy",
    )  # fmt: skip
    return _told(counts, width, loss)


paper = Paper(
    slug="passuntil",
    title="Predicting Emergent Abilities with Infinite Resolution Evaluation",
    authors="Shengding Hu, Xin Liu, Xu Han, Xinrong Zhang, Chaoqun He, Weilin Zhao, Yankai Lin, Ning Ding, "
    "Zebin Ou, Guoyang Zeng, Zhiyuan Liu and Maosong Sun",
    year=2023,
    arxiv="2310.03262",
    summary=(
        "A small model that fails a task at every one of a hundred attempts may still pass once in ten "
        "thousand, and that rate grows smoothly with size: the logarithm of minus its logarithm is a line in "
        "the logarithm of the number of parameters. Sampling each instance until it passes measures "
        "such rates without a floor; fits made on models that seem to be unable foretell a larger one, and a "
        "curve that bends below the line is what emergence means. This entry brings the sampler, the "
        "estimators, the law and a test of the bend."
    ),
    studies=(unique, functions),
    parts=(
        "allometry.infer.pass_until", "allometry.infer.TokenSampler", "allometry.infer.HFSampler",
        "allometry.measure.PassCounts", "allometry.measure.pass_at_k", "allometry.laws.TaskLaw",
        "allometry.laws.MultiStep", "allometry.laws.BestCircuit", "allometry.laws.SoftVote",
        "allometry.laws.shape", "allometry.data.completion_tasks",
    ),
)  # fmt: skip
