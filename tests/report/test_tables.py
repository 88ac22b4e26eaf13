import pytest

from sacl.report.tables import DASH, Cell, html_table, number, p_text, plain_table, score_cell


def test_undefined_is_a_dash_and_minus_is_a_minus():
    assert number(None) == DASH
    assert number(-0.25, 2) == "\N{MINUS SIGN}0.25"
    assert number(0.25, 2, sign=True) == "+0.25"


@pytest.mark.parametrize("value", [-0.0001, 0.0001, 0.0])
def test_rounded_zero_has_no_sign(value):
    assert number(value, 1, sign=True) == "0.0"


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0004, "<\N{NO-BREAK SPACE}0.001"), (0.0123, "0.012"), (0.25, "0.25"), (1, "1.00")],
)
def test_p_values_have_few_digits(p, text):
    assert p_text(p) == text


def test_score_without_interval_is_the_mean_alone():
    assert score_cell({"mean": 0.5, "low": None, "high": None}) == "0.500"
    assert score_cell({"mean": None, "low": None, "high": None}) == DASH
    assert score_cell({"mean": 0.5, "low": 0.4, "high": 0.6}, 1) == f"0.5 (0.4{DASH}0.6)"


def test_everything_in_a_table_is_escaped():
    text = html_table(["<i>"], [["<b>", Cell("a & b", '"x')]], "<u>")
    assert "<i>" not in text
    assert "<b>" not in text
    assert "<u>" not in text
    assert "a &amp; b" in text
    assert 'class="&quot;x"' in text


def test_plain_table_aligns_its_columns():
    assert plain_table(["run", "Dice"], [["main", "0.8"]]) == "run   Dice\nmain  0.8"
