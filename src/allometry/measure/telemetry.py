"""What a monitor's table is made of, and which of its numbers mean nothing.

Adding a constant to all keys changes no attention, so that the gradient of a key's bias is zero, and what is
computed is rounding error, 1e-9 of other gradients or less. To count it as a gradient below AdamW's ε would
be a false alarm in every model that has such biases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MAX_LOGIT = "max attention logit"
ENTROPY = "attention entropy"
LOG_Z = "log z"
RESIDUAL = "residual rms"
GRADIENT = "gradient rms"
UPDATE = "update rms"
NORM = "parameter norm"
FAILING_LOGIT = 1e4  # where the paper sees training fail
COARSE_LOG_Z = 128.0  # from here on bfloat16 numbers are one apart, and differences of logits are lost

Threshold = float | tuple[float | None, float | None]

_ROUNDING = 1e-7  # of the largest gradient; float32 tells apart no less


def flowing(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a table without gradients, and updates from them, that are rounding errors of zero.

    Parameters
    ----------
    table : DataFrame
        ``step``, ``quantity``, ``module`` and ``value``, maybe with ``run``.

    Returns
    -------
    DataFrame
        Less the rows of parameters whose gradient is above zero and below 1e-7 of the largest of its step.

    >>> import pandas
    >>> rows = [(0, "gradient rms", "key.bias", 1e-11), (0, "gradient rms", "key.weight", 1e-2)]
    >>> flowing(pandas.DataFrame(rows, columns=["step", "quantity", "module", "value"]))["module"].tolist()
    ['key.weight']
    """
    keys = [key for key in ("run", "step") if key in table]
    gradients = table[table["quantity"] == GRADIENT]
    if not len(gradients) or not keys:
        return table
    largest = gradients.groupby(keys)["value"].transform("max")
    noise = gradients[(gradients["value"] > 0) & (gradients["value"] < _ROUNDING * largest)]
    if not len(noise):
        return table
    import pandas as pd

    keys = [*keys, "module"]
    meant = table["quantity"].isin([GRADIENT, UPDATE])
    listed = pd.MultiIndex.from_frame(table[keys]).isin(pd.MultiIndex.from_frame(noise[keys]))
    return table[~(meant & listed)]
