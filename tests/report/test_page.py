import math
import re

import pytest

from sacl.report.page import (
    DASH,
    GENERATOR,
    SHARE_AXIS,
    environment,
    log_axis,
    number,
    render,
    score_text,
    significant,
)
from sacl.scores.summary import Estimate


def test_undefined_is_a_dash_and_minus_is_a_minus():
    assert number(None) == number(math.nan) == DASH
    assert number(math.inf) == "∞"
    assert number(-0.25, 2) == "\N{MINUS SIGN}0.25"
    assert number(0.25, 2, sign=True) == "+0.25"


@pytest.mark.parametrize("value", [-0.0001, 0.0001, 0.0])
def test_rounded_zero_has_no_sign(value):
    assert number(value, 1, sign=True) == "0.0"


def test_score_without_interval_is_the_mean_alone():
    assert score_text(Estimate(0.5, math.nan, math.nan, 1)) == "0.500"
    assert score_text(Estimate(math.nan, math.nan, math.nan, 0)) == DASH
    assert score_text(Estimate(0.5, 0.4, 0.6, 9), 1) == f"0.5 (0.4{DASH}0.6)"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234567.0, "1234567"), (0.001234, "0.00123"), (-12.5, "\N{MINUS SIGN}12.5")],
)
def test_three_digits_are_significant(value, text):
    assert significant(value) == text


def test_a_page_says_near_its_start_whose_it_is():
    assert GENERATOR in render("base.html")[:1000]


def test_an_axis_has_few_ticks_and_ends_at_them():
    assert log_axis([3.0, 1700.0]).ticks == (1, 10, 100, 1000, 10000)
    assert log_axis([1.1, 2.9]).ticks == (1, 2, 5)
    assert log_axis([150.0, 900.0]).ticks == (100, 200, 500, 1000)
    assert log_axis([0.03]).ticks == pytest.approx((0.02, 0.05))
    assert log_axis([10.0]).ticks == (10, 20)


@pytest.mark.parametrize(
    ("values", "said"),
    [([3.0, 1700.0], "1 10 100 1000 10000"), ([0.9, 1700.0], "0.1 10 10000")],
)
def test_numbers_of_an_axis_do_not_overlap(values, said):
    head = environment().get_template("macros.html").module.axis_head(log_axis(values), "mL")
    assert " ".join(re.findall(r"<text[^>]*>([^<]*)<", head)) == said


def test_places_on_an_axis_are_percent_and_never_beyond_it():
    axis = log_axis([1.0, 90.0])
    assert [axis.at(value) for value in (1, 10, 100, 1e9, 0)] == [0, 50, 100, 100, 0]
    assert [SHARE_AXIS.at(value) for value in (0.0, 0.25, 1.0)] == [0, 25, 100]
