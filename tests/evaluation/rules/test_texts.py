"""ANLS and VQA accuracy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.evaluation.rules.anls import anls, edit_distance
from linvt.evaluation.rules.vqa_accuracy import normalise_vqa, vqa_accuracy


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("12 March", ["12 march", "March 12"], 1.0),
        ("  12   March ", ["12 March"], 1.0),
        ("14.2", ["14.3"], 0.75),
        ("14", ["14.3"], 0.5),
        ("1", ["14.3"], 0.0),  # ¼ is below the threshold
        ("", ["14.3"], 0.0),
        ("nothing of the kind", ["14.3"], 0.0),
    ],
)
def test_anls(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edit_distance_is_a_distance(a, b, c):
    assert edit_distance(a, b) == edit_distance(b, a)
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert abs(len(a) - len(b)) <= edit_distance(a, b) <= max(len(a), len(b))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Cat.", "cat"),
        ("two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldntve been", "couldntve been"),  # not in the published table
        ("couldn'tve", "couldn't've"),
        ("3,000", "3000"),
        ("3.5", "3.5"),
        ("U.S.", "us"),
        ("Tom's", "tom 's"),
        ("coca-cola", "coca cola"),
        ("coca- cola", "coca cola"),
        ("a", ""),
        ("somebody'd", "somebodyd"),  # as published
        ("yes?\n", "yes"),
    ],
)
def test_vqa_normalisation(text, normal):
    assert normalise_vqa(text) == normal


def test_vqa_accuracy_is_agreement_with_the_others():
    people = ["coca cola"] * 3 + ["coke"] * 6 + ["Coke!"]
    assert vqa_accuracy("coke", people) == 1.0
    # Leaving out one of the three who say it leaves two: 2/3 for those, 1 for the other seven.
    assert vqa_accuracy("Coca-Cola", people) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa_accuracy("pepsi", people) == 0.0
    assert vqa_accuracy("", ["", *people[1:]]) == 0.0
    # One person alone: 1/3 for the nine others, nothing for them.
    assert vqa_accuracy("one", ["1", *["2"] * 9]) == pytest.approx(9 / 30)
