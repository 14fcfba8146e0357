"""One text for one value: the form in which plans, arguments and records are hashed, compared and stored.

- JSON with sorted keys and no spaces, so a digest does not depend on the order in which a dictionary grew.
- A float is written by ``repr`` and reads back bit for bit; ``1`` and ``1.0`` stay what they were.
- JSON has no word for NaN and the infinities, and databases reject the ones that Python invents; here they
  are ``{"$float": "nan"}``, explicit and the same everywhere.
- NumPy scalars and arrays and tensors become numbers and lists; anything else is refused with its place.
"""

import hashlib
import json
import math
from typing import Any

_FLOAT = "$float"


def _plain(value: Any, place: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        number = float(value)
        return number if math.isfinite(number) else {_FLOAT: repr(number)}
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(
                    f"{place} has the key {key!r}; keys must be strings that do not begin with '$'"
                )
        return {key: _plain(item, f"{place}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{place}[{index}]") for index, item in enumerate(value)]
    if callable(getattr(value, "tolist", None)):  # NumPy scalars and arrays, tensors
        return _plain(value.tolist(), place)
    raise TypeError(
        f"{place} is {value!r} of type {type(value).__name__}; give numbers, strings, booleans, None, "
        "lists or dictionaries of these"
    )


def canonical(value: Any, *, place: str = "value") -> str:
    """The canonical JSON text of a value.

    Parameters
    ----------
    value
        Numbers, strings, booleans, None, NumPy arrays, and lists, tuples and dictionaries of these.
    place : str
        What the value is called in an error.

    Raises
    ------
    TypeError
        If something in it has no JSON form; the message says where.

    Examples
    --------
    >>> canonical({"b": float("nan"), "a": (1, 0.1)})
    '{"a":[1,0.1],"b":{"$float":"nan"}}'
    """
    return json.dumps(_plain(value, place), sort_keys=True, separators=(",", ":"), allow_nan=False)


def message(value: Any) -> str:
    """The same text with keys in their own order, for one process to tell another; one line.

    >>> message({"step": 3, "loss": float("inf")})
    '{"step":3,"loss":{"$float":"inf"}}'
    """
    return json.dumps(_plain(value, "message"), separators=(",", ":"), allow_nan=False)


def _revive(pairs: dict[str, Any]) -> Any:
    return float(pairs[_FLOAT]) if _FLOAT in pairs else pairs


def restore(text: str) -> Any:
    """The value that :func:`canonical` or :func:`message` wrote (tuples and arrays come back as lists).

    >>> restore(canonical({"loss": float("-inf")}))
    {'loss': -inf}
    """
    return json.loads(text, object_hook=_revive)


def digest(value: Any, *, place: str = "value") -> str:
    """SHA-256 of the canonical text, as 64 hexadecimal digits.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(canonical(value, place=place).encode()).hexdigest()
