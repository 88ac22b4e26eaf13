import pytest

from sacl.report.headline import headline, points


def _summary(difference, p_holm, *, subjects=12, smallest_p=0.0005, p=None, interval=True):
    dice = {"scratch": 0.77, "semantic": 0.77 + difference}
    return {
        "runs": {run: {"dice": {"mean": dice[run]}} for run in ("semantic", "scratch")},
        "comparisons": [
            {
                "metric": "dice",
                "run": "semantic",
                "against": "scratch",
                "mean_difference": difference,
                "low": difference - 0.02 if interval else None,
                "high": difference + 0.02 if interval else None,
                "subjects": subjects,
                "p": p_holm if p is None else p,
                "p_holm": p_holm,
                "smallest_p": smallest_p,
            }
        ],
    }


def _plain(text):
    return text.replace("\N{NO-BREAK SPACE}", " ").replace("\N{MINUS SIGN}", "-")


def test_says_that_pretraining_wins():
    sentence, details = headline(_summary(0.041, 0.004))
    assert sentence == "Semantic pretraining beats training from scratch: Dice 0.811 against 0.770."
    assert _plain(details[0]) == (
        "+4.1 points of Dice (95 % interval +2.1 to +6.1), p = 0.004, 12 subjects."
    )


def test_says_that_pretraining_loses():
    sentence, details = headline(_summary(-0.03, 0.02))
    assert sentence.startswith("Semantic pretraining does worse than training from scratch")
    assert _plain(details[0]).startswith("-3.0 points of Dice")


@pytest.mark.parametrize("difference", [0.03, -0.03])
def test_difference_that_may_be_chance_is_not_called_one(difference):
    sentence, _ = headline(_summary(difference, 0.05))
    assert "do not clearly differ" in sentence


def test_equal_runs_are_called_equal():
    assert "score the same" in headline(_summary(0.0, 1.0))[0]


def test_too_few_subjects_for_any_proof_are_named():
    _, details = headline(_summary(0.05, 0.125, subjects=4, smallest_p=0.125))
    assert "no p-value below 0.125 is possible" in details[-1]


def test_one_subject_has_no_interval():
    _, details = headline(_summary(0.05, 1.0, subjects=1, smallest_p=1.0, interval=False))
    assert _plain(details[0]) == "+5.0 points of Dice, p = 1.00, 1 subject."


def test_corrected_p_decides_and_not_the_raw_one():
    assert "do not clearly differ" in headline(_summary(0.04, 0.06, p=0.03))[0]


def test_run_alone_reports_its_score():
    summary = _summary(0.04, 0.01)
    summary["comparisons"] = []
    sentence, details = headline(summary)
    assert sentence == "Semantic pretraining reaches a mean Dice of 0.810."
    assert details == ["There is no other run to compare it with."]


def test_no_run_says_so():
    assert headline({"runs": {}, "comparisons": []})[0].startswith("Nothing was scored")


def test_points_are_hundredths_with_a_sign():
    assert _plain(points(0.0123)) == "+1.2"
    assert _plain(points(-0.0123)) == "-1.2"
    assert points(0.0) == "0.0"
