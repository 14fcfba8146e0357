"""Which law is meant: a published one by name, one that was fitted, from its file, or the law itself.

A law that is to count repeated tokens and has no parameters for it borrows the two half-lives of Muennighoff
et al., 2023, arXiv:2305.16264, who fitted them with everything else held fixed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from allometry.laws.average import Average
from allometry.laws.fit import Fit
from allometry.laws.published import PublishedLaw, published
from allometry.laws.repetition import DataConstrained

__all__ = ["Law", "counting_repetition", "load_law", "read_fits"]

Law = Fit | PublishedLaw


def load_law(law: str | Path | Law | Average) -> tuple[list[Law], str, str]:
    """A law by name, file or as it is: the laws that it averages, what it is called, and where it is from.

    Parameters
    ----------
    law : str, path, Fit, PublishedLaw or Average
        A file holds what `Fit.to_dict` gives, alone or under ``law``, ``laws`` or ``fits``, as the commands
        ``allometry forecast`` and ``allometry fit`` write it.

    Raises
    ------
    ValueError
        There is neither a published law nor a file of that name, the file holds no law, or the law is not one
        of parameters and tokens.

    Examples
    --------
    >>> load_law("kaplan")[1:]
    ('kaplan', 'Kaplan et al., 2020, arXiv:2001.08361, equation 1.5, table 2')
    """
    found: Sequence[Law]
    if isinstance(law, PublishedLaw):
        return [law], law.name, f"{law.source}, {law.where}"
    if isinstance(law, Fit):
        found, source = [law], ""
    elif isinstance(law, Average):
        found, source = law.fits, ""
    elif isinstance(law, (str, Path)):
        if not Path(law).is_file():
            try:
                return load_law(published(str(law)))
            except ValueError as error:
                raise ValueError(f"{error}, and there is no file of that name") from None
        found, source = read_fits(Path(law)), str(law)
    else:
        raise TypeError(f"law must be a name, a file, a Fit, a PublishedLaw or an Average, not {law!r}")
    for one in found:
        if not {"params", "tokens"} <= set(one.form.inputs):
            raise ValueError(
                f"the {one.form.name} form has inputs {one.form.inputs}; a plan needs a law of params and "
                "tokens"
            )
    names = " and ".join(one.form.name for one in found)
    label = names if len(found) == 1 else f"average of {names}"
    points = max(len(one.log_y) for one in found if isinstance(one, Fit))
    told = f"fitted to {points} points"
    return list(found), label, f"{told}, {source}" if source else told


def read_fits(path: Path) -> list[Fit]:
    """The fits in a file, each under whatever key the commands put it."""
    try:
        stored = json.loads(path.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no law: it is not JSON ({error})") from None
    content: Any = stored if isinstance(stored, dict) else {}
    for key in ("fits", "laws", "law"):
        if content.get(key) and isinstance(content[key], (dict, list)):
            content = content[key]
            break
    several = content if isinstance(content, list) else [content] if "theta" in content else content.values()
    try:
        fits = [Fit.from_dict(one) for one in several]
    except ValueError as error:
        raise ValueError(f"{path} holds no law that can be read: {error}") from None
    except (KeyError, TypeError, AttributeError):
        fits = []
    if not fits:
        raise ValueError(
            f"{path} holds no law; give the law.json of allometry forecast or allometry fit, or Fit.to_dict "
            "as JSON"
        )
    return fits


def counting_repetition(laws: Sequence[Law], notes: list[str]) -> list[Law]:
    """The laws as laws of unique tokens too: half-lives of repetition are lent to sums of powers."""
    able = [law for law in laws if law.form.name in ("chinchilla", "data-constrained")]
    if not able:
        raise ValueError(
            f"the {laws[0].form.name} form cannot count repeated tokens; leave unique_tokens out, or take "
            "the law data-constrained or one of the chinchilla form"
        )
    if len(able) < len(laws):
        notes.append(
            f"Only the {able[0].form.name} law of the average can count repeated tokens; it is used alone."
        )
    lent = published("data-constrained")
    rates = {"R_N": lent.params["R_N"], "R_D": lent.params["R_D"]}
    out: list[Law] = []
    for law in able:
        if law.form.name == "data-constrained":
            out.append(law)
        elif isinstance(law, PublishedLaw):
            out.append(replace(law, form_name="data-constrained", params={**law.params, **rates}))
        else:
            logs = np.log(list(rates.values()))
            many = np.broadcast_to(logs, (len(law.theta_draws), 2))
            out.append(
                replace(
                    law,
                    form=DataConstrained(),
                    theta=np.concatenate([law.theta, logs]),
                    theta_draws=np.concatenate([law.theta_draws, many], axis=1),
                    log_x=np.concatenate([law.log_x, law.log_x[:, 1:2]], axis=1),
                )
            )
    if any(law.form.name == "chinchilla" for law in able):
        notes.append(f"What repeated tokens and excess parameters are worth is taken from {lent.source}.")
    return out
