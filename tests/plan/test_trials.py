import pytest

from sacl.plan.facts import Tried, best_of, in_words, trial_s


def tried(**dice):
    return [Tried(name, value, {}, 1, 1.0) for name, value in dice.items()]


def test_the_first_candidate_is_taken_unless_another_is_clearly_ahead():
    assert best_of(tried(first=0.50, second=0.515)).candidate == "first"
    assert best_of(tried(first=0.50, second=0.53, third=0.60)).candidate == "third"


def test_all_figures_are_said():
    assert in_words(tried(slices=0.281, volume=0.4)).endswith("slices 0.28, volume 0.40")


@pytest.mark.parametrize(("minutes", "each_s"), [(30, 0), (93, 0), (94, 423), (120, 540)])
def test_a_trial_takes_15_percent_of_the_time_or_nothing(minutes, each_s):
    assert trial_s(60 * minutes, 2) == pytest.approx(each_s)
