"""Numbers and names for people; oracle: parsing the text back, and properties of Unicode."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ntkwatch.report.words import MISSING, clean, duration, finite, flatten, number, shorten


# Rounding up the very largest would leave the range of floats.
@given(st.floats(-1e300, 1e300), st.integers(2, 6))
def test_a_printed_number_parses_back_to_itself_within_its_digits(value, digits):
    read = float(number(value, digits=digits))
    assert math.isclose(read, value, rel_tol=0.51 * 10 ** (1 - digits), abs_tol=0)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_zero_is_printed_only_for_exactly_zero(value):
    assert (float(number(value)) == 0) == (value == 0)


def test_what_was_not_measured_is_a_dash_and_not_a_number():
    assert number(None) == MISSING == "–"


def test_negative_zero_is_printed_without_a_sign():
    assert number(-0.0, signed=True) == "0"


def test_a_signed_number_shows_its_plus():
    assert number(0.0213, signed=True) == "+0.0213"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0042, "0.00420 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7265, "2 h 1 min"),
    ],
)
def test_a_time_span_is_in_units_that_a_reader_uses(seconds, said):
    assert duration(seconds) == said


@given(st.text())
@example("half a pair: \ud800")
def test_clean_text_is_one_printable_line_of_the_same_length(text):
    cleaned = clean(text)
    assert len(cleaned) == len(text)
    assert len(cleaned.splitlines()) <= 1
    cleaned.encode()
    assert "\x1b" not in cleaned
    assert "\u202e" not in cleaned


@given(st.text(), st.integers(3, 40))
def test_shortened_text_fits_and_keeps_both_ends(text, limit):
    short = shorten(text, limit)
    assert len(short) <= limit
    if len(text) > limit:
        assert short[0] == text[0]
        assert short[-1] == text[-1]


def test_nested_settings_become_one_line_each():
    settings = {"size": 64, "classes": {"cat": 3, "dog": 5}, "params": ["a", "b"], "none": None}
    assert flatten(settings, "probe: ") == [
        ("probe: size", "64"),
        ("probe: classes", "cat: 3, dog: 5"),
        ("probe: params", "a, b"),
        ("probe: none", "–"),
    ]


def test_a_thousand_parameter_names_are_counted_and_not_all_listed():
    ((_, said),) = flatten({"params": [f"layer.{i}" for i in range(1000)]})
    assert said.startswith("1000 in all: layer.0, layer.1, ")
    assert said.endswith("…, layer.999")
    assert len(said) < 200


def test_data_without_infinities_is_what_strict_json_takes():
    data = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "c": "nan", 3: True}
    cleaned = finite(data)
    assert json.loads(json.dumps(cleaned, allow_nan=False)) == {
        "a": [1.5, None, [None, {"b": None}]],
        "c": "nan",
        "3": True,
    }
