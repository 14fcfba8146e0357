"""A ladder run by somebody's own training command: which runs, in which words, and what they told.

The command is a template, ``python train.py --width {width} --tokens {tokens} --out {out}``.  It is split
into words first and the values are put into each word after, so that no shell reads them and no value can
become a second word; who needs a shell writes ``sh -c '...'``.

- Every (width, tokens, seed) is a run of its own: a trunk that branches into several horizons (Hägele et al.,
  2024, arXiv:2405.18392) needs a trainer that knows of it.
- Several learning rates are swept at the smallest width and horizon, and the best is pinned in the store
  before the rest starts.  One rate for all widths is right only where the parametrization carries it (maximal
  update parametrization; Yang and Hu, 2020, arXiv:2011.14522); otherwise give a rate for each width.
- A run's folder is named by its values and says by itself whether the run is done (`forecast.child`), so runs
  may be made elsewhere, by a scheduler, and be read from here.
"""

from __future__ import annotations

import glob
import math
import shlex
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from allometry.forecast.child import ended, run_command, time_limit

if TYPE_CHECKING:
    from allometry.forecast.collect import Collected
    from allometry.laws.answers import Answer
    from allometry.study.execute import Event, Report, Task
    from allometry.study.store import Plan, Store

__all__ = ["CommandLadder", "CommandRun", "run_command", "words"]

PLACEHOLDERS = ("width", "tokens", "lr", "seed", "out", "params")
_EXAMPLE = "'python train.py --width {width} --tokens {tokens} --seed {seed} --out {out}'"


@dataclass(frozen=True)
class CommandRun:
    """One run of the command: its values and its words.

    >>> CommandRun("width-16", 16, 1000, None, 0, "my runs/a", ("train", "--out", "my runs/a")).command
    "train --out 'my runs/a'"
    """

    key: str
    width: int
    tokens: int
    lr: float | None
    seed: int
    out: str
    argv: tuple[str, ...]
    params: int | None = None

    @property
    def command(self) -> str:
        """The words as a shell would have to be given them."""
        return shlex.join(self.argv)

    def task(self, directory: Path) -> Task:
        """The run as a task of the executor; its cost goes as width squared by tokens, as compute does."""
        from allometry.study.execute import Task

        arguments = {"key": self.key, "seed": self.seed, "out": self.out, "argv": list(self.argv),
                     "directory": str(directory)}  # fmt: skip
        cost = float(self.width**2 * self.tokens)
        return Task(self.key, "allometry.forecast.commands:run_command", arguments, cost=cost)


def words(template: str, values: Mapping[str, Any]) -> list[str]:
    """A template's words with values for its placeholders; braces are doubled to stand for themselves.

    >>> words("train --width {width} --name 'a {width}' --json {{}}", {"width": 64})
    ['train', '--width', '64', '--name', 'a 64', '--json', '{}']

    Raises
    ------
    ValueError
        If a quotation or brace is not closed, or a placeholder is none of those known.
    """
    return [_filled(word, values) for word in words_of(template)]


def words_of(template: str) -> list[str]:
    """The words of a template, its placeholders still in them."""
    try:
        split = shlex.split(template)
    except ValueError as error:
        raise ValueError(f"the command {template!r} cannot be split into words: {error}") from None
    if not split:
        raise ValueError(f"the command is empty; give one such as {_EXAMPLE}")
    return split


def _filled(word: str, values: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, form in _parsed(word):
        parts.append(literal)
        if name is not None:
            try:
                parts.append(format(values[name], form) if form else _shown(values[name]))
            except ValueError as error:
                raise ValueError(f"{{{name}:{form}}} in the command: {error}") from None
    return "".join(parts)


def _parsed(text: str) -> list[tuple[str, str | None, str]]:
    """Pieces of text, each with the placeholder after it and its format."""
    cure = "braces that are no placeholder are doubled, {{ and }}"
    try:
        found = list(string.Formatter().parse(text))
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; {cure}") from None
    for _, name, form, conversion in found:
        if name is not None and (name not in PLACEHOLDERS or conversion or "{" in (form or "")):
            known = ", ".join(f"{{{one}}}" for one in PLACEHOLDERS)
            raise ValueError(f"{{{name}}} in {text!r} is no placeholder; known are {known}; {cure}")
    return [(literal, name, form or "") for literal, name, form, _ in found]


def _placeholders(text: str) -> set[str]:
    return {name for _, name, _ in _parsed(text) if name is not None}


def _shown(value: Any) -> str:
    """A number in the shortest digits that read back exactly."""
    return repr(value) if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class CommandLadder:
    """Runs of one command over widths, tokens and seeds.

    Parameters
    ----------
    command : str
        With ``{width}``, ``{tokens}``, ``{lr}``, ``{seed}``, ``{out}``, ``{params}`` where the values go.
    widths, tokens : sequences of numbers
        Each width is run at each number of tokens.
    lr : float, sequence of floats, or mapping of width to float, optional
        Peak learning rate: one for all widths, several to choose the best from, or one for each width.
    seeds, seed : int
        Seeds a size (three where the command has ``{seed}``), and the first of them.
    out : path
        Folder of the runs' folders; ``{out}`` is a run's own.
    params : mapping of width to int, optional
        Parameters without embeddings, where the logs do not tell them.
    logs : str
        Where a run's logs lie, a pattern with placeholders; by default its own folder.
    columns, records
        See `allometry.laws.runs.read_runs` and `Runs.final`: ``{"loss": "val/loss"}``, ``"last"``.

    Raises
    ------
    ValueError
        If the command and the values do not fit together, in one sentence.

    Examples
    --------
    >>> ladder = CommandLadder("train {width} {tokens} {out}", widths=[8, 16], tokens=[1e5], out="runs")
    >>> [run.command for run in ladder.runs()]
    ['train 8 100000 runs/width-8_tokens-100000', 'train 16 100000 runs/width-16_tokens-100000']
    """

    command: str
    widths: Sequence[float]
    tokens: Sequence[float]
    lr: float | Sequence[float] | Mapping[int, float] | None = None
    seeds: int | None = None
    seed: int = 0
    out: str | Path = "ladder"
    params: Mapping[int, float] | None = None
    logs: str = "{out}"
    columns: Mapping[str, str] = field(default_factory=dict)
    records: str = "last"
    directory: Path = field(default_factory=Path.cwd)

    def __post_init__(self) -> None:
        used = self._used
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        put("widths", _whole("widths", self.widths))
        put("tokens", _whole("tokens", self.tokens))
        put("lr", _rates(self.lr))
        put("out", str(self.out))
        put("params", {int(width): int(count) for width, count in (self.params or {}).items()})
        put("seeds", (3 if "seed" in used else 1) if self.seeds is None else self.seeds)
        self._refuse(used)

    def _refuse(self, used: set[str]) -> None:
        for name, values in (
            ("width", self.widths),
            ("tokens", self.tokens),
            ("seed", range(self.seeds or 0)),
        ):
            if len(values) > 1 and name not in used:
                raise ValueError(
                    f"there are {len(values)} values of {name}, but the command has no {{{name}}}: "
                    f"every run would be the same"
                )
        if (self.seeds or 0) < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        if "lr" in used and self.lr is None:
            raise ValueError("the command has {lr}, but no learning rate is given; add --lr 4e-3")
        if "lr" not in used and self.lr is not None:
            raise ValueError("a learning rate is given, but the command has no {lr}")
        if isinstance(self.lr, Mapping) and (without := [w for w in self.widths if w not in self.lr]):
            raise ValueError(f"--lr gives rates by width, but none for width {without[0]}")
        if "params" in used and (without := [w for w in self.widths if w not in (self.params or {})]):
            raise ValueError(f"the command has {{params}}; give them for width {without[0]} too (--params)")
        if self.records not in ("last", "best"):
            raise ValueError(f"records is {self.records!r}; it is 'last' or 'best'")
        told = _placeholders(self.logs)
        varied = {name for name, values in (("width", self.widths), ("tokens", self.tokens),
                                            ("seed", range(self.seeds or 0))) if len(values) > 1}  # fmt: skip
        if "out" not in told and (less := sorted(varied - told)):
            raise ValueError(
                f"{self.logs!r} is the same place for every {less[0]}; where a run's logs lie needs {{out}} "
                f"or {{{less[0]}}}"
            )
        if "out" in told and "out" not in used:
            raise ValueError(
                "the command has no {out}, so its runs cannot be told apart; add it, or say with --collect "
                "where each run's log lies, such as 'logs/w{width}-t{tokens}-s{seed}.csv'"
            )

    # --- runs --------------------------------------------------------------------------------------------
    @property
    def rates(self) -> tuple[float, ...]:
        """The rates to choose from; empty where there is nothing to choose."""
        return tuple(self.lr) if isinstance(self.lr, tuple) else ()

    @property
    def _used(self) -> set[str]:
        """The placeholders that the command has."""
        return {name for word in words_of(self.command) for name in _placeholders(word)}

    def one(self, width: int, tokens: int, seed: int, lr: float | None = None) -> CommandRun:
        """One run; its rate is the ladder's own unless given."""
        if lr is None and isinstance(self.lr, Mapping):
            if width not in self.lr:
                raise ValueError(f"--lr gives rates by width, but none for width {width}")
            lr = self.lr[width]
        elif lr is None and isinstance(self.lr, float):
            lr = self.lr
        used = self._used
        values: dict[str, Any] = {"width": width, "tokens": tokens, "lr": lr, "seed": seed}
        key = "_".join(
            f"{name}-{_shown(value)}"
            for name, value in values.items()
            if value is not None and (name in used or name in ("width", "tokens"))
        )
        params = (self.params or {}).get(width)
        if params is None and "params" in used:
            raise ValueError(f"the command has {{params}}; give them for width {width} too (--params)")
        out = (Path(self.out) / key).as_posix()
        argv = words(self.command, {**values, "out": out, "params": params})
        return CommandRun(
            key, width, tokens, lr, seed, out, tuple(argv), None if params is None else int(params)
        )

    def sweep(self) -> list[CommandRun]:
        """One run for each rate to choose from, at the smallest width and horizon; none for one rate."""
        width, tokens = int(min(self.widths)), int(min(self.tokens))
        return [self.one(width, tokens, self.seed, rate) for rate in self.rates]

    def runs(self) -> list[CommandRun]:
        """The ladder's runs, smallest first.

        Raises
        ------
        ValueError
            If the rate has yet to be chosen: see `settled`.
        """
        if self.rates:
            raise ValueError("the learning rate has yet to be chosen; run the sweep first (settled)")
        seeds = range(self.seed, self.seed + (self.seeds or 1))
        return [self.one(int(w), int(t), s) for w in self.widths for t in self.tokens for s in seeds]

    def target_run(self, width: int, tokens: int) -> CommandRun:
        """The run to be foretold, with a seed that the ladder has not."""
        return self.one(width, tokens, self.seed + (self.seeds or 1) if "seed" in self._used else self.seed)

    def paths(self, run: CommandRun) -> str:
        """The pattern of a run's logs."""
        values = {name: value if name != "out" else glob.escape(str(self.directory / run.out))
                  for name, value in asdict(run).items()}  # fmt: skip
        pattern = _filled(self.logs, values)
        return (
            pattern
            if Path(pattern).is_absolute()
            else (Path(glob.escape(str(self.directory))) / pattern).as_posix()
        )

    def done(self, run: CommandRun) -> bool:
        """Whether a run has its result: it ended well here, or was run elsewhere and its log is whole."""
        from allometry.forecast.collect import record_of

        state = ended(self.directory / run.out, run.argv)
        if state is not None:
            return state
        try:
            record_of(run, self)
        except (ValueError, FileNotFoundError):
            return False
        return True

    # --- running -----------------------------------------------------------------------------------------
    def plan(self, store: Store, runs: Sequence[CommandRun], kind: str = "commands") -> Plan:
        """Keep the runs in the store as a plan, before any of them starts."""
        content = {
            "command": self.command,
            "directory": str(self.directory),
            "runs": [asdict(r) for r in runs],
        }
        return store.plan(store.put_plan(kind, content, content))

    def settled(self, store: Store) -> CommandLadder | None:
        """The ladder with the best rate of its sweep, which is pinned; None while results are missing.

        The rate is chosen once: where the store has one, that stands.
        """
        if not self.rates:
            return self
        if not self.swept(store) and not all(self.done(run) for run in self.sweep()):
            return None
        return self._pinned(store)

    def swept(self, store: Store) -> dict[str, float]:
        """Loss by rate, as the sweep had it when the rate was chosen; empty before."""
        plan = self.plan(store, self.sweep(), "commands/sweep")
        pinned = store.find_plan("commands/rate", {"sweep": plan.digest})
        return {} if pinned is None else pinned.content["losses"]

    def _pinned(self, store: Store) -> CommandLadder:
        """The ladder with the rate whose run ended with the least loss, of those that have one."""
        plan = self.plan(store, self.sweep(), "commands/sweep")
        pinned = store.find_plan("commands/rate", {"sweep": plan.digest}) or self._pin(store, plan)
        return replace(self, lr=float(pinned.content["lr"]))

    def _pin(self, store: Store, plan: Plan) -> Plan:
        from allometry.forecast.collect import record_of

        losses: dict[float, float] = {}
        why = ""
        for run in self.sweep():
            try:
                if run.lr is not None and self.done(run):
                    losses[run.lr] = record_of(run, self).values["loss"]
            except (ValueError, FileNotFoundError) as error:
                why = str(error)
        if not losses:
            raise ValueError(
                f"no run of the sweep over learning rates gave a loss: {why or 'none has ended'}"
            )
        best = min(losses, key=lambda rate: losses[rate])
        told = {_shown(rate): loss for rate, loss in losses.items()}
        request = {"sweep": plan.digest}
        return store.plan(store.put_plan("commands/rate", request, {"lr": best, "losses": told, **request}))

    def run(
        self,
        store: Store | str | Path = Path(".allometry") / "store.db",
        *,
        workers: int | None = None,
        threads: int = 1,
        timeout: float | None = None,
        display: Literal["auto", "terminal", "plain"] | None = "auto",
        on_event: Callable[[Event], None] | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Report:
        """Run whatever has no result yet: the sweep, if there is one, and then the ladder.

        Parameters
        ----------
        store : Store, path or URL
        workers, threads : int
            Runs side by side, and the threads of each; one worker where all share one accelerator.
        timeout : float, optional
            Seconds after which a run is ended and counts as failed.
        display, on_event
            See `allometry.study.execute.execute`.
        tell : callable, optional
            Gets the sentences worth saying.

        Returns
        -------
        Report
            Of the last part that was run; failed runs are in it with their reasons, and the same call repeats
            only these.
        """
        from allometry.study.store import Store

        settings: dict[str, Any] = {"workers": workers, "threads": threads, "timeout": timeout,
                                    "display": display, "on_event": on_event}  # fmt: skip
        if not isinstance(store, Store):
            with Store(store) as opened:
                return self.run(opened, tell=tell, **settings)
        ladder = self.settled(store)
        if ladder is None:
            plan = self.plan(store, self.sweep(), "commands/sweep")
            report = self.carry_out(self.sweep(), plan, store, **settings)
            if not report.done and not report.skipped:
                return report
            ladder = self._pinned(store)
            if report.failed and tell is not None:
                reasons = "; ".join(f"{key}: {why}" for key, why in report.failed.items())
                tell(f"The rate was chosen without {len(report.failed)} runs, which failed: {reasons}")
        if self.rates and tell is not None:
            tell(
                f"The learning rate is {ladder.lr:g}, the best of {len(self.rates)} at width "
                f"{min(self.widths)}"
            )
        runs = ladder.runs()
        return ladder.carry_out(runs, ladder.plan(store, runs), store, **settings)

    def carry_out(
        self,
        runs: Sequence[CommandRun],
        plan: Plan,
        store: Store,
        *,
        timeout: float | None = None,
        **settings: Any,
    ) -> Report:
        """Execute runs of a plan; those that have their result already are not repeated."""
        import shutil

        from allometry.study.execute import execute

        program = runs[0].argv[0]
        if shutil.which(program, path=None) is None and shutil.which(str(self.directory / program)) is None:
            raise ValueError(f"there is no program {program!r}; is the command right?")
        tasks = [run.task(self.directory) for run in runs]
        known = {row.key: row.status for row in store.run_list(plan)}
        for run, task in zip(runs, tasks, strict=True):
            done = self.done(run)
            if known.get(run.key) == "done" and not done:
                raise ValueError(
                    f"the store has {run.key} as done, but its result is not in {self.directory / run.out}; "
                    "bring the folder back, or give another --store"
                )
            if done and known.get(run.key) != "done":
                claimed = store.start_run(plan, run.key, task.arguments, seed=run.seed)
                if claimed is not None:
                    store.finish_run(claimed)
        with time_limit(timeout):
            return execute(tasks, store, plan, **settings)

    # --- what they told ----------------------------------------------------------------------------------
    def collect(self) -> Collected:
        """Read the logs of all runs that have one."""
        from allometry.forecast.collect import collect

        return collect(self, self.runs())

    def answer(self, **settings: Any) -> Answer:
        """Fit a law to what the runs told: `allometry.laws.answers.answer`."""
        from allometry.laws.answers import answer

        return answer(self.collect().runs, **settings)


def _whole(name: str, values: Sequence[float]) -> tuple[int, ...]:
    found = [values] if isinstance(values, int | float) else list(values)
    if not found:
        raise ValueError(f"give {name}, several of them, such as 16,32,64")
    for value in found:
        if not (math.isfinite(value) and value >= 1 and abs(value - round(value)) < 1e-6 * value):
            raise ValueError(f"{name} are whole numbers of at least 1, not {value!r}")
    return tuple(sorted({round(value) for value in found}))


def _rates(given: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, Mapping):
        found: Any = {int(width): float(rate) for width, rate in given.items()}
        each = list(found.values())
    else:
        each = [float(given)] if isinstance(given, int | float) else sorted({float(rate) for rate in given})
        found = each[0] if len(each) == 1 else tuple(each)
    for rate in each:
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"a learning rate is a positive number, not {rate!r}")
    if not each:
        raise ValueError("give a learning rate, such as 4e-3")
    return found
