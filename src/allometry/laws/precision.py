"""What few bits cost: loss against parameters, tokens, exponent and mantissa bits, and the size of a block.

Sun et al., 2025, "Scaling Laws for Floating-Point Quantization Training", arXiv:2501.02423:

    L = E + A/N^alpha + B/D^beta + (D^beta/N^alpha) log2(block) / (gamma (e+½)^delta (m+½)^nu),

the law of Hoffmann et al. plus what rounding costs when weights (in both passes) and activations (in the
weight gradient) are multiplied with e exponent and m mantissa bits, each block of values sharing a scale.

* The excess grows with the data: beyond a *critical* number of tokens more of them hurt.
* At a fixed number of bits there is a best split into exponent and mantissa, at a fixed cost a best number of
  bits. Cost is k P N D with P bits; k = 6/16 counts operations of 16 bits.
* Runs of full precision stand in the table with a block of one: a value with a scale of its own is exact.
* ``gap=True`` fits the excess alone, each row above the measured loss of its twin of full precision (column
  ``baseline``): with paired seeds its noise is far below that of the losses.
* Bits of *inference*, after training in full precision, are `quantization_law` (the form of Kumar et al.,
  2024, arXiv:2411.04330).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from allometry.laws.forms import Array, Form
from allometry.laws.gap import EFFECTS, GapForm, PrecisionForm, distinct
from allometry.laws.law import Law
from allometry.laws.uncertainty import Interval

if TYPE_CHECKING:
    import pandas

    from allometry.laws.fit import Fit

__all__ = ["CHANNEL", "PUBLISHED", "PrecisionLaw", "quantization_law"]

CHANNEL = 2.0**13.1567  # the block to which the paper's fit takes one scale a channel
PUBLISHED: Mapping[str, float] = {
    "E": 1.9061, "A": 69.2343, "B": 68973.0621, "alpha": 0.2368, "beta": 0.5162,
    "gamma": 11334.5197, "delta": 3.1926, "nu": 2.9543,
}  # fmt: skip
_RANGE = (15.0, 2400.0)  # tokens a parameter of the paper's runs


class PrecisionLaw(Law):
    """Loss of training with floating-point numbers of few bits.

    Parameters
    ----------
    gap : bool
        Fit only the excess above the column ``baseline``; columns that the table lacks do not move it.
    constants : mapping or "paper", optional
        Parameters to answer with before, or without, a fit.

    Raises
    ------
    ValueError
        Constants that are not the law's.

    Examples
    --------
    >>> law = PrecisionLaw(constants="paper")
    >>> round(float(law.loss(40894464, 10485760000, 1, 1, 32)), 5)
    3.54631
    >>> law.best_layout(8), f"{float(law.critical_data(1e9, 4, 3, 128).value):.3g}"
    ((4, 3), '2.73e+13')
    """

    name = "precision"
    columns: ClassVar[Mapping[str, str]] = {
        "params": "parameters N",
        "tokens": "training tokens D",
        "exponent_bits": "bits of the exponent",
        "mantissa_bits": "bits of the mantissa, the sign not among them",
        "block": "values that share a scale; 1 for a run of full precision",
    }
    synonyms: ClassVar[Mapping[str, Sequence[str]]] = {
        "exponent_bits": ("e", "exponent", "exp_bits"),
        "mantissa_bits": ("m", "mantissa", "man_bits", "significand"),
        "block": ("b", "block_size", "group_size", "blocksize"),
        "baseline": ("baseline_loss", "full_precision_loss", "loss_full"),
    }

    def __init__(self, gap: bool = False, constants: Mapping[str, float] | str | None = None) -> None:
        self.gap = gap in (True, "true", "True", "yes", 1)
        self.form: Form = PrecisionForm()
        if self.gap:
            every, needed = dict(self.columns), ("exponent_bits", "mantissa_bits")
            # what a table must hold depends on what is fitted: the instance's own, in place of the class's
            self.columns = {  # type: ignore[misc]
                **{name: every.pop(name) for name in needed},
                "baseline": "loss of the run's twin of full precision",
            }
            self.optional = every  # type: ignore[misc]
            self.form = GapForm("params", "tokens", "exponent_bits", "mantissa_bits", "block")
        chosen = PUBLISHED if constants == "paper" else constants
        if chosen is not None and (isinstance(chosen, str) or set(chosen) != set(PUBLISHED)):
            raise ValueError(f"constants must be 'paper' or a mapping of {', '.join(PUBLISHED)}")
        if chosen is not None and self.gap:
            raise ValueError("constants are those of the whole law, not of the gap alone")
        self.constants: Mapping[str, float] | None = chosen
        self.warnings_: list[str] = []

    # --- learning ----------------------------------------------------------------------------------------
    def fit(
        self, table: Any, *, resamples: int = 1000, random_state: int = 0, **options: Any
    ) -> PrecisionLaw:
        """As `Law.fit`.

        Raises
        ------
        ValueError
            No row is rounded, or a column that moves the loss has one value.
        """
        from allometry.laws.fit import fit

        columns = self.read(table)
        block = columns.get("block", np.full(len(columns[self.target]), 2.0))
        if not (block > 1).any():
            raise ValueError(
                "no row has a block of more than one value: what rounding costs cannot be learned"
            )
        if self.gap:
            given = [name for name in PUBLISHED_COLUMNS if name in columns]
            self.form = GapForm(*given)
        for name in self.form.inputs:
            rows = block > 1 if name in ("exponent_bits", "mantissa_bits") else slice(None)
            if name not in ("block", "baseline") and distinct(columns, name, rows) < 2:
                cure = "; leave the column out" if self.gap and name in self.optional else ""
                raise ValueError(
                    f"all {'rounded ' if isinstance(rows, np.ndarray) else ''}rows have one value of {name}: "
                    f"what it does cannot be learned{cure}"
                )
        run, several = self._runs(columns)
        self.fit_ = fit(
            self.form, self.design(columns), columns[self.target], run=run, resamples=resamples,
            random_state=random_state, **{**self.fit_options, **options},
        )  # fmt: skip
        self.measured_ = columns | {"run": run}
        self.warnings_ = list(self.fit_.warnings)
        if not several:
            self.warnings_.append(
                "All rows are named one run of one size; each was taken for a run of its own."
            )
        return self

    def _runs(self, columns: Mapping[str, Any]) -> tuple[Any, bool]:
        """Runs as named, told apart where they must be several, and whether there was more than one.

        A training has one size and one format, and rows above one twin have its size. A table of many
        trainings is often read from one file, whose name is then all that its rows know as their run.
        """
        rows = len(columns[self.target])
        if "run" not in columns:
            return np.arange(rows), True
        apart = ("params",) if self.gap else ("params", "exponent_bits", "mantissa_bits", "block")
        keys = [np.unique(np.asarray(columns[name]), return_inverse=True)[1].ravel()
                for name in ("run", *apart) if name in columns]  # fmt: skip
        labels = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].ravel()
        several = bool(labels.max() > 0)
        return (labels if several else np.arange(rows)), several

    @property
    def params_(self) -> dict[str, float]:
        if self.constants is not None and not hasattr(self, "fit_"):
            return dict(self.constants)
        return super().params_

    def predict(self, table: Any) -> Array:
        if hasattr(self, "fit_") or self.constants is None:
            return super().predict(table)
        theta = self.form.to_coordinates(np.array([[self.constants[name] for name in self.form.names]]))
        columns = self.read(table, target=False)
        return np.exp(self.form.log_prediction(theta, self.form.features(self.design(columns)))[0])

    # --- answers -----------------------------------------------------------------------------------------
    def loss(self, params: Any, tokens: Any, exponent_bits: Any, mantissa_bits: Any, block: Any) -> Array:
        """The loss, in nats a token; arguments broadcast. A block of one is full precision.

        Warns where the paper's constants are asked for tokens a parameter that its runs did not have.
        """
        self._whole()
        shape = np.broadcast_shapes(*map(np.shape, (params, tokens, exponent_bits, mantissa_bits, block)))
        flat = [
            np.broadcast_to(np.asarray(one, dtype=float), shape).ravel()
            for one in (params, tokens, exponent_bits, mantissa_bits, block)
        ]
        ratio = flat[1] / flat[0]
        if not hasattr(self, "fit_") and ((ratio < _RANGE[0]) | (ratio > _RANGE[1])).any():
            warnings.warn(
                f"the paper's runs had {_RANGE[0]:g} to {_RANGE[1]:g} tokens a parameter; beyond, its "
                "constants are an extrapolation", stacklevel=2,
            )  # fmt: skip
        return self.predict(dict(zip(PrecisionForm.inputs, flat, strict=True))).reshape(shape)

    def rho(self, params: Any, tokens: Any, exponent_bits: Any, mantissa_bits: Any, block: Any) -> Array:
        """What rounding adds to the loss, in nats a token; a fitted gap ignores columns that it lacks."""
        told = dict(
            zip(PrecisionForm.inputs, (params, tokens, exponent_bits, mantissa_bits, block), strict=True)
        )
        p = self.params_
        log = -np.log(p["gamma"])
        for name, effect in EFFECTS.items():
            if effect.parameter in p and name in told:
                values = np.log(np.asarray(told[name], dtype=float) + effect.half)
                log = log + effect.sign * p[effect.parameter] * values
        blocks = not self.gap or "block" in self.form.inputs
        return np.exp(log) * (np.log2(np.asarray(block, dtype=float)) if blocks else 1.0)

    def layout(self, bits: float, level: float = 0.9) -> tuple[Interval, Interval]:
        """The best real numbers of exponent and mantissa bits for so many bits in all, the sign included.

        e = delta P / (delta + nu) - ½, m = nu P / (delta + nu) - ½.
        """
        _positive("bits", bits)
        rows = self._rows()
        share = rows["delta"] / (rows["delta"] + rows["nu"])
        return _interval(share * bits - 0.5, level), _interval((1 - share) * bits - 0.5, level)

    def best_layout(self, bits: int) -> tuple[int, int]:
        """The best whole numbers of exponent and mantissa bits, for at least two bits with the sign."""
        if bits != int(bits) or bits < 2:
            raise ValueError(f"bits must be a whole number of at least two, a sign among them, not {bits}")
        exponent = np.arange(int(bits))
        p = self.params_
        value = p["delta"] * np.log(exponent + 0.5) + p["nu"] * np.log(bits - 1 - exponent + 0.5)
        best = int(exponent[value.argmax()])
        return best, int(bits) - 1 - best

    def critical_data(
        self, params: float, exponent_bits: float, mantissa_bits: float, block: float, level: float = 0.9
    ) -> Interval:
        """Tokens beyond which the loss rises: the root of dL/dD = 0."""
        self._whole()
        _positive("params", params)
        if block <= 1:
            return Interval(np.inf, np.inf, np.inf, level)
        r = self._rows()
        log = (
            np.log(r["B"] * r["gamma"]) + r["alpha"] * np.log(params) - np.log(np.log2(block))
            + r["delta"] * np.log(exponent_bits + 0.5) + r["nu"] * np.log(mantissa_bits + 0.5)
        )  # fmt: skip
        return _interval(np.exp(log / (2 * r["beta"])), level)

    def optimal_bits(
        self,
        block: float,
        *,
        flops: float | None = None,
        params: float | None = None,
        tokens: float | None = None,
        k: float = 6 / 16,
        level: float = 0.9,
    ) -> Interval:
        """Bits P, in their best layout, that give the lowest loss at the cost ``flops = k P N D``.

        Give ``flops`` alone, with ``params``, or ``tokens`` alone: with the data fixed, the best P is the
        same for every cost (Sun et al., 2025, section 4.4).

        Raises
        ------
        ValueError
            Another combination, a block of one, or a law in which bits are worth less than parameters
            (delta + nu <= alpha): its best P is none.
        """
        self._whole()
        if block <= 1:
            raise ValueError("full precision (a block of one) costs nothing more: there is no best P")
        r = self._rows()
        both, log_block = r["delta"] + r["nu"], np.log2(block)
        with np.errstate(invalid="ignore", divide="ignore"):
            size = (
                r["gamma"] * r["delta"] ** r["delta"] * r["nu"] ** r["nu"] / both**both
            )  # gamma_rho of the paper
            fixed_data = (both - r["alpha"]) / (r["A"] * r["alpha"] * size)
            if tokens is not None and flops is None and params is None:
                _positive("tokens", tokens)
                log = np.log(fixed_data * log_block) + r["beta"] * np.log(tokens)
                power = both
            elif flops is not None and params is not None and tokens is None:
                _positive("params", params)
                _positive("flops", flops)
                worth = (r["beta"] + both) / (r["B"] * r["beta"] * size)
                log = (
                    np.log(worth * log_block) + 2 * r["beta"] * np.log(flops / k)
                    - (r["alpha"] + 2 * r["beta"]) * np.log(params)
                )  # fmt: skip
                power = both + 2 * r["beta"]
            elif flops is not None and params is None and tokens is None:
                _positive("flops", flops)
                ratio = (r["alpha"] + r["beta"]) / r["beta"]
                log = (
                    ratio * np.log(fixed_data * log_block) + r["alpha"] * np.log(flops / k)
                    + np.log((both - r["alpha"]) / (both + r["beta"]))
                    + np.log(r["B"] * r["beta"] / (r["A"] * r["alpha"]))
                )  # fmt: skip
                power = both * ratio + r["alpha"]
            else:
                raise ValueError("give flops, flops and params, or tokens")
            bits = np.exp(log / power)
        if not np.isfinite(bits[0]):
            raise ValueError(
                "in this law bits are worth less than parameters: there is no best number of them"
            )
        return _interval(bits, level)

    def allocate(
        self,
        flops: float,
        block: float,
        *,
        formats: Sequence[tuple[int, int]] | None = None,
        k: float = 6 / 16,
        level: float = 0.9,
    ) -> pandas.DataFrame:
        """For each format the model and the data that give the lowest loss at a cost; the best first.

        Parameters
        ----------
        flops : float
            ``k P N D`` with P bits.
        block : float
        formats : sequence of (exponent bits, mantissa bits)
            By default the best layouts of 3 to 16 bits.

        Returns
        -------
        DataFrame
            One row a format: ``bits``, ``exponent_bits``, ``mantissa_bits``, ``params``, ``tokens``,
            ``loss``, and of a fitted law ``low`` and ``high`` of the loss.

        Examples
        --------
        >>> table = PrecisionLaw(constants="paper").allocate(1e24, 128)
        >>> [int(one) for one in table.iloc[0][["bits", "exponent_bits", "mantissa_bits"]]]
        [5, 2, 2]
        """
        import pandas

        self._whole()
        _positive("flops", flops)
        chosen = [self.best_layout(bits) for bits in range(3, 17)] if formats is None else list(formats)
        exponent, mantissa = np.array(chosen, dtype=float).T
        bits = 1 + exponent + mantissa
        r = {name: value[:, None] for name, value in self._rows().items()}
        log_nd = np.log(flops / (k * bits))
        # with D = cost / (k P N) the loss is a sum of exponentials of log N, hence convex: bisect its slope
        excess = np.log2(block) * np.exp(
            r["beta"] * log_nd - r["delta"] * np.log(exponent + 0.5) - r["nu"] * np.log(mantissa + 0.5)
        ) / r["gamma"]  # fmt: skip
        data = r["B"] * np.exp(-r["beta"] * log_nd)

        def parts(x: Array) -> tuple[Array, Array, Array]:
            return (r["A"] * np.exp(-r["alpha"] * x), data * np.exp(r["beta"] * x),
                    excess * np.exp(-(r["alpha"] + r["beta"]) * x))  # fmt: skip

        low, high = np.zeros(data.shape), np.zeros(data.shape) + log_nd
        for _ in range(60):
            middle = 0.5 * (low + high)
            size, tokens, rounding = parts(middle)
            rising = (
                r["beta"] * tokens > r["alpha"] * size + (r["alpha"] + r["beta"]) * rounding
            )  # dL / dlog N > 0
            low, high = np.where(rising, low, middle), np.where(rising, middle, high)
        loss = r["E"] + sum(parts(low))
        params = np.exp(low[0])
        table = pandas.DataFrame(
            {"bits": bits, "exponent_bits": exponent, "mantissa_bits": mantissa, "params": params,
             "tokens": flops / (k * bits * params), "loss": loss[0]}
        )  # fmt: skip
        if len(loss) > 1:
            table["low"], table["high"] = np.quantile(loss[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
        table = table.astype(dict.fromkeys(("bits", "exponent_bits", "mantissa_bits"), int))
        return table.sort_values("loss", kind="stable", ignore_index=True)

    def report(self, level: float = 0.9) -> dict[str, pandas.DataFrame]:
        """Tables of what follows from the law: best layouts, critical data, best bits by cost."""
        import pandas

        layouts = [(bits, *self.best_layout(bits)) for bits in range(3, 17)]
        names = ["bits", "exponent_bits", "mantissa_bits"]
        told = {"best layout": pandas.DataFrame(layouts, columns=names).set_index("bits")}
        if self.gap:
            return told
        measured = getattr(self, "measured_", None)
        params = 1e9 if measured is None else float(measured["params"].max())
        block = 128.0
        if measured is not None:
            values, times = np.unique(measured["block"][measured["block"] > 1], return_counts=True)
            block = float(values[times.argmax()])  # the most usual
        critical = [
            (bits, *self.critical_data(params, e, m, block, level))
            for bits, e, m in layouts
            if bits in (4, 6, 8, 16)
        ]
        told[f"critical tokens, {params:.3g} parameters, blocks of {block:g}"] = pandas.DataFrame(
            critical, columns=["bits", "value", "low", "high"]
        ).set_index("bits")
        costs = 10.0 ** np.arange(18, 31, 2)
        best = [(cost, *self.optimal_bits(block, flops=cost, level=level)) for cost in costs]
        told[f"best bits by cost, blocks of {block:g}"] = pandas.DataFrame(
            best, columns=["flops", "value", "low", "high"]
        ).set_index("flops")
        return told

    def _rows(self) -> dict[str, Array]:
        """Each parameter ``(1 + draws,)``: the fitted value first."""
        values = np.array(list(self.params_.values()))[None]
        if hasattr(self, "fit_") and len(self.fit_.theta_draws):
            values = np.concatenate([values, self.fit_.draws])
        return dict(zip(self.params_, values.T, strict=True))

    def _whole(self) -> None:
        if self.gap:
            raise ValueError("a law of the gap alone does not know the loss; fit PrecisionLaw() to losses")


PUBLISHED_COLUMNS = tuple(PrecisionLaw.columns)


def quantization_law(
    full: Any, quantized: Any, *, params: Any = None, tokens: Any = None, bits: Any = None, run: Any = None,
    **options: Any,
) -> Fit:  # fmt: skip
    """Fit what quantization after training costs: ``excess = C D^beta / N^alpha exp(-kappa bits)``.

    Kumar et al., 2024, arXiv:2411.04330 (equation 3): few bits at inference cost more the longer a model was
    trained, and less the larger it is.

    Parameters
    ----------
    full, quantized : arrays (n,)
        Losses, or other positive figures that are the worse the larger, such as error rates.
    params, tokens, bits : arrays (n,), optional
        At least one; what is not given is taken not to matter. ``bits`` are those of the stored weights.
    run : sequence (n,), optional
        Which model each row belongs to; resampling is by model.
    options
        For `allometry.laws.fit`.

    Returns
    -------
    Fit
        Of the form `GapForm`: ``gamma`` is 1/C; ``predict`` takes the columns and ``baseline``.

    Raises
    ------
    ValueError
        No column, or one with a single value.

    Examples
    --------
    >>> n = np.array([1e8, 1e9, 1e10, 1e11])
    >>> fit = quantization_law(2 + 0 * n, 2 + 50 * n**-0.3, params=n, resamples=0)
    >>> round(fit.params["alpha"], 6)
    0.3
    """
    from allometry.laws.fit import fit

    told = {"params": params, "tokens": tokens, "bits": bits}
    given = {name: np.asarray(one, dtype=float) for name, one in told.items() if one is not None}
    if not given:
        raise ValueError(
            "give at least one of params, tokens and bits: the law is about how the excess moves"
        )
    for name, values in given.items():
        if len(np.unique(values)) < 2:
            raise ValueError(
                f"all rows have one value of {name}: what it does cannot be learned; leave it out"
            )
    columns = {**given, "baseline": np.asarray(full, dtype=float)}
    return fit(GapForm(*given), columns, quantized, run=run, **options)


def _positive(name: str, value: float) -> None:
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, not {value}")


def _interval(rows: Array, level: float) -> Interval:
    """The first row with the quantiles of the others; NaN limits without draws."""
    if len(rows) < 2:
        return Interval(float(rows[0]), float("nan"), float("nan"), level)
    low, high = np.nanquantile(rows[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(rows[0]), float(low), float(high), level)
