"""Sampling until it passes beside a Python loop around ``generate``; lines at once beside SciPy in a loop.

The loop is what a user would write: for one instance after the other, ``generate`` a batch of draws, look for
passes, stop at the r-th. It gets the same model, the same batch, the same number of new tokens and the same
verifier; both count the same passes for as many instances. Of our own model the peer is its own ``generate``.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import __version__ as scipy_version
from scipy.optimize import minimize

from allometry.infer import HFSampler, TokenSampler, pass_until
from allometry.laws.pass_likelihood import fit_lines
from allometry.models import GPT, GPTConfig
from benchmarks import Case

_R, _BATCH, _NEW = 2, 64, 24
_PROMPT = 96


def _model() -> GPT:
    config = GPTConfig(width=64, depth=2, context=_PROMPT + _NEW, vocab_size=64, zero_init_outputs=False)
    return GPT(config, generator=torch.Generator().manual_seed(0))


def _passes(prompt: tuple[int, ...], completion: tuple[int, ...]) -> bool:
    """One in 64, or one in 640: whether the last token is the prompt's, and for odd prompts another too."""
    hit = completion[-1] == prompt[0]
    return hit and (prompt[0] % 2 == 0 or completion[-2] < 7)


def _generate_until(prompts: list[tuple[int, ...]], cap: int) -> np.ndarray:
    model, generator = _model(), torch.Generator().manual_seed(0)
    trials = np.zeros(len(prompts), dtype=int)
    for s, prompt in enumerate(prompts):
        passed = 0
        while passed < _R and trials[s] < cap:
            rows = torch.tensor([prompt]).expand(_BATCH, -1)
            made = model.generate(rows, _NEW, generator=generator)[:, len(prompt) :]
            for tokens in made.tolist():
                trials[s] += 1
                passed += _passes(prompt, tuple(tokens))
                if passed == _R:
                    break
    return trials


def _hub_model() -> tuple[object, object]:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [chr(ord("A") + i) for i in range(58)]
    raw = Tokenizer(
        models.WordLevel({one: i for i, one in enumerate(["<pad>", *letters])}, unk_token="<pad>")
    )
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=59, n_embd=64, n_layer=2, n_head=4, n_positions=_PROMPT + _NEW, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval(), tokenizer


def cases() -> list[Case]:
    """Draws until two have passed, for both kinds of model; and 200 lines fitted at once."""
    generator = np.random.default_rng(0)
    prompts = [tuple(int(one) for one in generator.integers(0, 64, _PROMPT)) for _ in range(12)]
    sampler = TokenSampler(_model(), encode=list, decode=tuple, max_new_tokens=_NEW)
    found = [
        Case(
            "pass_until: 12 instances, own model",
            lambda: pass_until(sampler, _passes, prompts, r=_R, max_samples=512, batch_size=_BATCH),
            lambda: _generate_until(prompts, 512),
            "loop around GPT.generate",
            1.5,
            rounds=5,
            note="ours shares every batch among all instances that are open and reads each prompt once; the "
            "loop's last batch of an instance is mostly behind its second pass.",
        )
    ]
    try:
        model, tokenizer = _hub_model()
    except ImportError:
        return [*found, _lines()]
    texts = [
        "".join(chr(ord("A") + int(one)) for one in generator.integers(0, 58, _PROMPT)) for _ in range(12)
    ]
    hub = HFSampler(model, tokenizer, max_new_tokens=_NEW)

    def verifier(prompt: str, said: str) -> bool:
        return said[-1:] == prompt[0]

    def bare(prompt: str, said: str) -> bool:  # the tokenizer joins words by spaces
        return verifier(prompt, said.replace(" ", ""))

    def loop() -> None:
        torch.manual_seed(0)
        for text in texts:
            ids = tokenizer(text, return_tensors="pt")  # type: ignore[operator]
            passed = drawn = 0
            while passed < _R and drawn < 512:
                made = model.generate(  # type: ignore[attr-defined]
                    input_ids=ids["input_ids"], attention_mask=ids["attention_mask"], do_sample=True, top_k=0,
                    num_return_sequences=_BATCH, max_new_tokens=_NEW, pad_token_id=0,
                )  # fmt: skip
                for said in tokenizer.batch_decode(made[:, ids["input_ids"].shape[1] :]):  # type: ignore[attr-defined]
                    drawn += 1
                    passed += bare(text, said)
                    if passed == _R:
                        break

    import transformers

    found.append(
        Case(
            "pass_until: 12 instances, transformers",
            lambda: pass_until(hub, bare, texts, r=_R, max_samples=512, batch_size=_BATCH),
            loop,
            f"loop around transformers {transformers.__version__} generate",
            1.5,
            rounds=3,
        )
    )  # fmt: skip
    return [*found, _lines()]


def _lines() -> Case:
    """200 instances on six models: all lines in one batch, against SciPy's L-BFGS-B once an instance."""
    rng = np.random.default_rng(0)
    x = np.linspace(-1.7, 1.7, 6)
    f = (1.5 + 0.25 * rng.standard_normal((200, 1))) - (0.4 + 0.05 * rng.standard_normal((200, 1))) * x
    passes = rng.binomial(500, np.exp(-np.exp(f))).astype(float)
    failures = 500 - passes
    lines = fit_lines(x, passes, failures, rounds=200)
    precision = np.linalg.inv(lines.spread)

    def minus(theta: np.ndarray, s: np.ndarray, k: np.ndarray) -> tuple[float, np.ndarray]:
        rate = np.exp(theta[0] - theta[1] * x)
        away = theta - lines.centre
        slope = k * rate / np.expm1(rate) - s * rate
        value = s @ rate - k @ np.log(-np.expm1(-rate)) + 0.5 * away @ precision @ away
        return float(value), -np.array([slope.sum(), -(slope @ x)]) + precision @ away

    def loop() -> None:  # with the prior given: SciPy need not find it
        for s, k in zip(passes, failures, strict=True):
            minimize(minus, lines.centre, (s, k), jac=True, method="L-BFGS-B")

    return Case(
        "task law: lines of 200 instances",
        lambda: fit_lines(x, passes, failures, rounds=60),
        loop,
        f"SciPy {scipy_version} L-BFGS-B, a loop",
        3.0,
        note="ours finds the distribution over instances too (60 steps of EM); the loop is given it.",
    )
