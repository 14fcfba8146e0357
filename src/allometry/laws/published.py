"""Laws that others fitted and published: numbers, source, what N counts, and the runs they were fitted to.

A law is no better than the runs behind it, so each carries its domain, and `PublishedLaw.extrapolation` says
by how many orders of magnitude a question lies outside.  None was published with a joint distribution of its
parameters (standard errors one by one do not make one: A and alpha are nearly collinear), so none has
intervals; a `Fit` to your own runs has.

- *Approach 3 of Hoffmann et al. is here twice*: as printed, its exponents rounded to two digits, and with the
  four digits of the paper's source.  The rounding nearly doubles the tokens for 10^12 parameters, and it is
  the four digits that agree with the paper's own table A3 (Besiroglu et al., 2024, found both).
- *Kaplan et al. predict early-stopped training on D tokens*, repeated as often as helps: their D is the size
  of a data set.  The split that this law implies (N growing as C^0.58) is therefore not the one that the
  paper advises (C^0.73), which comes from its law of steps.
- A batch size and a learning rate that follow from compute alone stand beside them as a `Recipe`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from allometry.laws.allocate import Allocation, compute_optimal
from allometry.laws.forms import Form, get_form

if TYPE_CHECKING:
    import pandas

__all__ = ["PublishedLaw", "Recipe", "published", "published_laws", "published_recipe"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PublishedLaw:
    """A law with its numbers as published.

    Attributes
    ----------
    name : str
        The name by which `published` finds it.
    form_name : str
        The law's shape; see `get_form`.
    params : mapping of str to float
        Parameters by name; losses are nats a token.
    authors, year, arxiv : str, int, str
    where : str
        Equation or table.
    params_counted : str
        Which parameters N counts.
    domain : mapping of str to (float, float)
        Smallest and largest value of each input among the runs that it was fitted to.
    note : str
        What to bear in mind.
    """

    name: str
    form_name: str
    params: Mapping[str, float]
    authors: str
    year: int
    arxiv: str
    where: str
    params_counted: str
    domain: Mapping[str, tuple[float, float]]
    note: str = field(default="", compare=False)

    @property
    def form(self) -> Form:
        """The law's shape."""
        return get_form(self.form_name)

    @property
    def theta(self) -> Array:
        """Parameters ``(p,)`` in the form's coordinates, as `Fit.theta`."""
        form = self.form
        return form.to_coordinates(np.array([self.params[name] for name in form.names]))

    @property
    def source(self) -> str:
        """Authors, year and arXiv number."""
        return f"{self.authors}, {self.year}, arXiv:{self.arxiv}"

    def predict(self, x: Any) -> Array:
        """Predicted loss ``(n,)`` in nats a token, at columns of scales as `Fit.predict` takes them."""
        form = self.form
        return np.exp(form.log_prediction(self.theta[None], form.features(x))[0])

    def optimal(self, flops: float, **fixed: float) -> Allocation:
        """Parameters and tokens that minimise the loss at ``flops`` = 6 N D; see `compute_optimal`."""
        return compute_optimal(self.form, dict(self.params), flops, method="auto", **fixed)

    def extrapolation(self, x: Any) -> dict[str, Array]:
        """Orders of magnitude ``(m,)`` by which each input lies outside the domain; negative is below.

        Examples
        --------
        >>> law = published("chinchilla-replicated")
        >>> law.extrapolation({"params": 1e12, "tokens": 1e11})["params"].round(1).tolist()
        [1.8]
        """
        form = self.form
        features = form.features(x)
        beyond = {}
        for column, name in enumerate(form.inputs):
            if name in self.domain:
                low, high = np.log(self.domain[name])
                values = features[:, column]
                beyond[name] = (np.maximum(values - high, 0) + np.minimum(values - low, 0)) / np.log(10.0)
        return beyond

    def to_dict(self) -> dict[str, Any]:
        """Everything, as plain strings and numbers that JSON can hold."""
        stored = asdict(self)
        return stored | {
            "params": dict(self.params),
            "domain": {name: list(limits) for name, limits in self.domain.items()},
        }

    def __str__(self) -> str:
        values = ", ".join(f"{name} = {value:g}" for name, value in self.params.items())
        return f"{self.name} ({self.source}, {self.where}): {values}"


@dataclass(frozen=True)
class Recipe:
    """Batch size and peak learning rate as powers of training compute C: a starting point, not an optimum.

    Attributes
    ----------
    batch : (float, float)
        Coefficient and exponent of the batch in tokens.
    rate : (float, float)
        Coefficient and exponent of the peak learning rate.
    domain : (float, float)
        Training FLOPs of the runs that it was fitted to.
    """

    name: str
    batch: tuple[float, float]
    rate: tuple[float, float]
    authors: str
    year: int
    arxiv: str
    where: str
    domain: tuple[float, float]
    note: str = field(default="", compare=False)

    @property
    def source(self) -> str:
        """Authors, year and arXiv number."""
        return f"{self.authors}, {self.year}, arXiv:{self.arxiv}"

    def batch_tokens(self, flops: float) -> float:
        """Tokens a step for a training compute of ``flops``."""
        return float(self.batch[0] * flops ** self.batch[1])

    def learning_rate(self, flops: float) -> float:
        """Peak learning rate (of AdamW) for a training compute of ``flops``."""
        return float(self.rate[0] * flops ** self.rate[1])

    def extrapolation(self, flops: float) -> float:
        """Orders of magnitude by which ``flops`` lies outside the domain; negative is below."""
        low, high = self.domain
        return float(max(np.log10(flops / high), 0.0) + min(np.log10(flops / low), 0.0))


_ALL = "all parameters, embeddings included"

_HOFFMANN = PublishedLaw(
    "chinchilla",
    "chinchilla",
    {"E": 1.6934, "A": 406.4, "B": 410.7, "alpha": 0.3392, "beta": 0.2849},
    "Hoffmann et al.",
    2022,
    "2203.15556",
    "approach 3, digits of the paper's source",
    _ALL,  # appendix F
    {"params": (70e6, 16e9), "tokens": (5e9, 500e9)},  # section 1: over 400 models
    "The fit stopped early: it asks for far more tokens than the paper's approaches 1 and 2 (Besiroglu et "
    "al., 2024).",
)

_LAWS = (
    # The domain is that of the 240 runs fitted, with tokens = FLOPs / 6 N.
    PublishedLaw(
        "chinchilla-replicated",
        "chinchilla",
        {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        "Besiroglu et al.", 2024, "2404.10102", "refit of approach 3", _ALL,
        {"params": (57.3e6, 16.2e9), "tokens": (0.82e9, 318e9)},
        "Refitted to 240 runs read off a figure of Hoffmann et al., 2022: one pass over MassiveText, cosine "
        "schedules.",
    ),
    _HOFFMANN,
    replace(
        _HOFFMANN,
        name="chinchilla-rounded",
        params={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        where="approach 3, as printed in section D.2",
        note="Rounding its exponents to two digits biases it; chinchilla has four.",
    ),
    PublishedLaw(
        "kaplan",
        "kaplan",
        {"Nc": 6.4e13, "Dc": 1.8e13, "alpha_N": 0.076, "alpha_D": 0.103},
        "Kaplan et al.", 2020, "2001.08361", "equation 1.5, table 2", "non-embedding parameters",
        {"params": (768.0, 1.5e9), "tokens": (22e6, 23e9)},
        "D is the size of a data set, repeated with early stopping; the split implied is not the paper's own "
        "N ~ C^0.73. There is no floor.",
    ),
    # Logarithms and digits as in the authors' code; the paper prints 521, 1488, 1.87, 0.35, 15.4 and 5.3.
    PublishedLaw(
        "data-constrained",
        "data-constrained",
        {
            "E": float(np.exp(0.6254804)), "A": float(np.exp(6.255414)), "B": float(np.exp(7.3049974)),
            "alpha": 0.3526596, "beta": 0.3526596, "R_N": 5.309743, "R_D": 15.387756,
        },
        "Muennighoff et al.", 2023, "2305.16264", "equation 17, appendix A", "model parameters",
        {"params": (7e6, 9e9), "tokens": (100e6, 900e9)},
        "Fitted to 182 runs on C4 of 1 to 500 epochs; repetition only ever helps less, it never hurts.",
    ),
)  # fmt: skip

_RECIPES = (
    Recipe(
        "deepseek",
        batch=(0.2920, 0.3271),
        rate=(0.3118, -0.1250),
        authors="Bi et al.",
        year=2024,
        arxiv="2401.02954",
        where="equation 1",
        domain=(1e17, 2e19),
        note="AdamW, multi-step schedule, C counted as non-embedding FLOPs; the band of settings within "
        "0.25 % of the best is wide.",
    ),
)

DEFAULT_LAW = "chinchilla-replicated"


def published(name: str = DEFAULT_LAW) -> PublishedLaw:
    """A published law by its name.

    Raises
    ------
    ValueError
        There is no law of that name.

    Examples
    --------
    >>> best = published("chinchilla-replicated").optimal(5.76e23)
    >>> round(best.tokens_per_param, 1)
    18.4
    """
    for law in _LAWS:
        if law.name == name:
            return law
    raise ValueError(f"no published law is called {name!r}; there are {', '.join(law.name for law in _LAWS)}")


def published_recipe(name: str = "deepseek") -> Recipe:
    """A published rule for batch size and learning rate by its name.

    Examples
    --------
    >>> f"{published_recipe().learning_rate(1e20):.1e}"
    '9.9e-04'
    """
    for recipe in _RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in _RECIPES)
    raise ValueError(f"no published recipe is called {name!r}; there is {known}")


def published_laws() -> pandas.DataFrame:
    """All published laws, one row each: form, numbers, source, what N counts, domain and note.

    Examples
    --------
    >>> published_laws().loc["kaplan", "arxiv"]
    '2001.08361'
    """
    import pandas

    rows = []
    for law in _LAWS:
        row: dict[str, Any] = {"law": law.name, "form": law.form_name, "source": f"{law.authors}, {law.year}"}
        row |= {"arxiv": law.arxiv, "where": law.where, "params_counted": law.params_counted}
        for name, (low, high) in law.domain.items():
            row |= {f"{name}_from": low, f"{name}_to": high}
        row |= {"values": ", ".join(f"{key} = {value:.6g}" for key, value in law.params.items())}
        rows.append(row | {"note": law.note})
    return pandas.DataFrame(rows).set_index("law")
