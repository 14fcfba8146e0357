"""One text for one value, and the value back from the text."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from allometry.study.canonical import canonical, digest, restore

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True, allow_infinity=True) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text().filter(lambda key: not key.startswith("$")), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(a: object, b: object) -> bool:
    """Equal with types, signed zeros and NaN told apart from nothing but themselves."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@given(VALUES)
def test_every_value_comes_back_bit_for_bit(value: object) -> None:
    assert same(restore(canonical(value)), value)


@given(st.dictionaries(st.text(alphabet="abc", min_size=1), VALUES, min_size=2))
def test_digest_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


@given(VALUES)
def test_text_is_strict_json(value: object) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(word)

    json.loads(canonical(value), parse_constant=refuse)


def test_whole_numbers_and_floats_are_told_apart() -> None:
    assert digest({"a": 1}) != digest({"a": 1.0})
    assert digest(0.0) != digest(-0.0)
    assert digest(True) != digest(1)


def test_numpy_numbers_and_arrays_are_numbers_and_lists() -> None:
    value = {"a": np.float32(0.1), "b": np.arange(3), "c": np.array([[np.inf]]), "d": np.bool_(True)}
    back = restore(canonical(value))
    assert np.float32(back["a"]) == np.float32(0.1)
    assert back["b"] == [0, 1, 2]
    assert back["c"] == [[math.inf]]
    assert back["d"] is True


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1, {2, 3}]}, r"value\.a\[1\]"),
        ({"a": object()}, r"value\.a"),
        ({1: "a"}, "key 1"),
        ({"$float": "nan"}, r"\$float"),
        (1 + 2j, "complex"),
    ],
)
def test_what_has_no_text_is_refused_with_its_place(value: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        canonical(value)
