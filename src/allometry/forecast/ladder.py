"""The ladder: which small models are trained, on how much text, and how one rung of it is trained.

* One dial: width. Depth, head size, batch, warm-up in steps, share of the decay and the peak rate are the
  same on every rung and for the target; the rate is carried over width by maximal update parametrization
  (Yang and Hu, 2020. arXiv:2011.14522), and over nothing else.
* Every size is read at every horizon, all off one trunk (Hägele and others, 2024. arXiv:2405.18392).
* Every size reads the same text in the same order, for one seed; another seed reads another order.
* The plan is data: chosen from a fixed list before anything trains, stored with its hash, never revised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from allometry.study.execute import Context, Record, Task

if TYPE_CHECKING:
    import torch

    from allometry.data.corpus import Corpus
    from allometry.models.gpt import GPT, GPTConfig


@dataclass(frozen=True)
class Ladder:
    """Sizes, horizons and the recipe that they share.

    >>> Ladder(widths=(16, 32), tokens=(100_000,)).steps(100_000)
    98
    """

    widths: tuple[int, ...]
    tokens: tuple[int, ...]  # horizons, in tokens
    depth: int = 3
    head_size: int = 16
    context: int = 128
    batch: int = 8  # sequences a step
    learning_rate: float = 5e-3  # peak, at the base width
    base_width: int = 64
    warmup: int = 100  # steps
    decay: float = 0.25  # share of a run
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    validation_windows: int = 1024

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one update reads."""
        return self.batch * self.context

    def steps(self, tokens: float) -> int:
        """Updates nearest to a number of tokens."""
        return max(1, round(tokens / self.tokens_per_step))

    def horizons(self) -> tuple[int, ...]:
        """The horizons in steps."""
        return tuple(self.steps(tokens) for tokens in self.tokens)

    def trained_tokens(self, tokens: Sequence[float] | None = None) -> int:
        """Tokens that one run really reads: the trunk once, and every branch."""
        from allometry.optim.schedules import WSD
        from allometry.train.loop import segments

        horizons = self.horizons() if tokens is None else [self.steps(t) for t in tokens]
        plan = segments(horizons, WSD(self.warmup, self.decay))
        return self.tokens_per_step * sum(s.end - s.start for s in plan)

    def config(self, width: int, vocab_size: int) -> GPTConfig:
        """The model at one width."""
        from allometry.models.gpt import GPTConfig

        return GPTConfig(
            width=width,
            depth=self.depth,
            head_size=self.head_size,
            context=self.context,
            vocab_size=vocab_size,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Ladder:
        """The inverse of :meth:`to_dict`."""
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**settings)


_MILLION = 1_000_000
PLANS: dict[str, Ladder] = {
    "tiny": Ladder(
        widths=(16, 32, 48),
        tokens=(16_384, 24_576, 32_768),
        context=64,
        batch=4,
        warmup=8,
        validation_windows=64,
    ),
    "small": Ladder(widths=(16, 32, 48), tokens=(_MILLION, 3 * _MILLION // 2, 2 * _MILLION)),
    "default": Ladder(
        widths=(16, 32, 48, 64), tokens=(3 * _MILLION // 4, _MILLION, 3 * _MILLION // 2, 2 * _MILLION)
    ),
    "large": Ladder(
        widths=(64, 96, 128, 192, 256),
        tokens=(10 * _MILLION, 15 * _MILLION, 20 * _MILLION, 40 * _MILLION),
        depth=6,
        head_size=32,
        context=256,
        batch=32,
        base_width=64,
    ),
}


def non_embedding(ladder: Ladder, width: int, vocab_size: int) -> int:
    """Parameters of a width without its token table and head."""
    return ladder.config(width, vocab_size).parameters()["non_embedding"]


def new_model(ladder: Ladder, width: int, vocab_size: int, seed: int, *, device: str = "cpu") -> GPT:
    """A model of one width in maximal update parametrization."""
    import torch

    from allometry.init.mup import apply_
    from allometry.models.gpt import GPT
    from allometry.train.seeds import Seeds

    config = ladder.config(width, vocab_size)
    with torch.device("meta"):
        base = GPT(replace(config, width=ladder.base_width))
        delta = GPT(replace(config, width=2 * ladder.base_width))
    return apply_(GPT(config, generator=Seeds(seed).generator("init")), base, delta).to(device)  # type: ignore[return-value]


def new_optimizer(ladder: Ladder, model: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with each parameter's rate by its role, and decay independent of the rate (here zero)."""
    from allometry.init.mup import roles
    from allometry.optim.adamw import AdamWIndependent
    from allometry.optim.groups import param_groups

    multiples = roles(model, optimizer="adam", decay="independent")
    groups = param_groups(model, ladder.learning_rate, multiples)
    return AdamWIndependent(groups, ladder.learning_rate, betas=ladder.betas, fused=True)


def read_corpus(source: Mapping[str, Any]) -> Corpus:
    """The text that a plan names, or one sentence if it is no longer the same text."""
    from allometry.data.text import StandardLibrary, read_text

    settings = {key: source[key] for key in ("tokenizer",) if source.get(key)}
    if source["paths"]:
        corpus: Corpus = read_text(source["paths"], text_field=source.get("text_field", "text"), **settings)
    else:
        corpus = StandardLibrary(**settings)
    expected = source.get("digest")
    if expected and corpus.digest != expected:
        raise ValueError(
            f"the text has changed since this plan was made (digest {corpus.digest[:12]}, "
            f"the plan's {expected[:12]}); restore it, or start a new forecast with another --store"
        )
    return corpus


def run_key(width: int, seed: int) -> str:
    """How a run is called in the store."""
    return f"width-{width}/seed-{seed}"


def ladder_tasks(plan: Mapping[str, Any]) -> list[Task]:
    """One task a width and seed, or one a width where its seeds are trained as a stack."""
    ladder = Ladder.from_dict(plan["ladder"])
    tasks = []
    for width in ladder.widths:
        stacked = width in plan["stacked_widths"]
        together = len(plan["seeds"]) if stacked else 1
        for start in range(0, len(plan["seeds"]), together):
            chosen = plan["seeds"][start : start + together]
            tasks.append(_task(plan, ladder, width, chosen, ladder.tokens, stacked=stacked))
    return tasks


def target_task(plan: Mapping[str, Any], width: int, tokens: float, seed: int, *, processes: int = 1) -> Task:
    """The large run that checks the forecast, perhaps in several processes that share its weights out."""
    ladder = Ladder.from_dict(plan["ladder"])
    stacked = plan["target_stacked"] and processes == 1
    task = _task(plan, ladder, width, [seed], (int(tokens),), stacked=stacked, kind="target")
    if processes == 1:
        return task
    return replace(
        task,
        function="allometry.forecast.target:train",
        arguments={**task.arguments, "processes": processes},
        slots=processes,
        threads=max(1, plan["target_threads"] // processes),  # of each process
        gpus=task.gpus * processes,
    )


def _task(
    plan: Mapping[str, Any],
    ladder: Ladder,
    width: int,
    seeds: Sequence[int],
    tokens: Sequence[int],
    *,
    stacked: bool,
    kind: str = "ladder",
) -> Task:
    prefix = "" if kind == "ladder" else "target/"
    runs = tuple(prefix + run_key(width, seed) for seed in seeds)
    config = ladder.config(width, plan["vocab_size"])
    return Task(
        key=f"{kind}-width-{width}-seeds-{'-'.join(str(seed) for seed in seeds)}",
        function="allometry.forecast.ladder:train_rung",
        arguments={
            "ladder": ladder.to_dict(),
            "corpus": plan["corpus"],
            "vocab_size": plan["vocab_size"],
            "width": width,
            "seeds": list(seeds),
            "tokens": list(tokens),
            "runs": list(runs),
            "dtype": plan["dtype"],
            "device": plan["device"],
            "stack": stacked,
        },
        runs=runs,
        cost=len(seeds) * ladder.trained_tokens(tokens) * config.macs_per_token() ** 0.75,
        threads=plan["target_threads"] if kind == "target" else None,
        exclusive=kind == "target",
        gpus=1 if str(plan["device"]).startswith("cuda") else 0,
    )


def train_rung(arguments: Mapping[str, Any], context: Context) -> None:
    """Train one width with one or more seeds to every horizon; tell a record a seed and horizon at once."""
    import torch

    from allometry.data.windows import StackedWindows, Windows, validation_windows
    from allometry.optim.schedules import WSD
    from allometry.train.checkpoint import Checkpointer
    from allometry.train.language import bits_per_byte, evaluate
    from allometry.train.loop import fit
    from allometry.train.meter import Meter
    from allometry.train.parallel import shard
    from allometry.train.seeds import Seeds

    ladder = Ladder.from_dict(arguments["ladder"])
    device, vocab_size, width = arguments["device"], arguments["vocab_size"], arguments["width"]
    seeds, runs = arguments["seeds"], arguments["runs"]
    sharded = arguments.get("processes", 1) > 1
    if sharded and device.startswith("cuda"):
        device = "cuda"  # each process's own
    corpus = read_corpus(arguments["corpus"])
    train, held_out = corpus.tokens("train").to(device), corpus.tokens("validation").to(device)
    windows = validation_windows(held_out, ladder.context, ladder.validation_windows)
    # the bytes behind exactly these targets
    _, lengths = validation_windows(
        corpus.byte_lengths("validation"), ladder.context, ladder.validation_windows
    )
    bytes_per_token = float(lengths.double().mean())
    models = [new_model(ladder, width, vocab_size, seed, device=device) for seed in seeds]
    orders = [Windows(train, ladder.context, ladder.batch, Seeds(seed).integer("data")) for seed in seeds]
    config = ladder.config(width, vocab_size)
    counts = config.parameters()
    flops = 6.0 * config.macs_per_token()
    model: torch.nn.Module = models[0]
    batches: Any = orders[0]
    optimizer: torch.optim.Optimizer
    if arguments["stack"]:
        from allometry.train.stack import Stack

        model = Stack(models)
        batches = StackedWindows(orders)
        optimizer = model.optimizer(lambda member: new_optimizer(ladder, member))
    else:
        if sharded:
            model = shard(model, "fsdp2")
        optimizer = new_optimizer(ladder, model)

    def tell(record: Mapping[str, Any]) -> None:
        losses = record["loss"]
        for replica, run in enumerate(runs):
            if replica in record["lost"]:
                continue
            tokens = int(record["tokens"])
            context.record(
                Record(
                    run,
                    f"tokens={tokens}",
                    {
                        "width": width,
                        "seed": seeds[replica],
                        "params": counts["non_embedding"],
                        "total_params": counts["total"],
                        "tokens": tokens,
                        "flops": 6.0 * counts["non_embedding"] * tokens,
                        "model_flops": flops * tokens,
                        "epochs": tokens / orders[0].tokens_per_epoch,
                        "loss": losses[replica],
                        "bits_per_byte": bits_per_byte(losses[replica], bytes_per_token),
                    },
                )
            )

    log = fit(
        model,
        batches,
        optimizer=optimizer,
        horizons=[ladder.steps(tokens) for tokens in arguments["tokens"]],
        schedule=WSD(ladder.warmup, ladder.decay),
        clip=ladder.clip,
        validate=lambda network: {"loss": evaluate(network, windows).flatten().tolist()},
        dtype={"float32": None, "bfloat16": torch.bfloat16}[arguments["dtype"]],
        checkpointer=Checkpointer(context.directory),
        meter=Meter(ladder.tokens_per_step, flops),
        on_horizon=tell,
        progress=context.progress,
        should_stop=context.should_stop,
    )
    for replica, step in log.diverged.items():
        context.diverged(runs[replica], "the loss grew beyond twice its start or stopped being finite", step)
