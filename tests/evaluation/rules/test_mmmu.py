"""MMMU's parsing, case by case as its script does it, without its random guesses."""

import pytest

from linvt.evaluation.rules.mmmu import mmmu_open_is_right, mmmu_option, nextqa_option

OPTIONS = {"A": "a red ball", "B": "a box", "C": "Kite", "D": "none of these"}


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("(A) is wrong, so (D)", "D"),
        ("it is B I think", "B"),
        ("A or B", "B"),
        # "A." is no form of the published parser; a short answer is not searched for the options' texts either.
        ("A. a red ball", None),
        ("what the child holds is a kite", "C"),
        ("between a box and a red ball it is a box", "B"),
        ("kite", None),
        ("", None),
        ("E", None),
    ],
)
def test_option(text, option):
    assert mmmu_option(text, OPTIONS) == option


@pytest.mark.parametrize(
    ("text", "option"), [("A. a red ball", "A"), ("B", "B"), ("(C) Kite", "C"), ("DNA is not", "A"), ("x", None)]
)
def test_lmms_evals_forms_for_nextqa(text, option):
    assert nextqa_option(text, OPTIONS) == option


@pytest.mark.parametrize(
    ("text", "answers", "right"),
    [
        ("The result is 3.14159", ["3.14"], True),
        ("12,000", ["12000"], True),
        ("so the total = 1.5e3", ["1500"], True),
        ("I think it is Tampa.", ["Tampa", "Florida"], True),
        ("about 7", ["8"], False),
        # One character must stand beside a blank: "x" is not in "max".
        ("it is max", ["x"], False),
        ("the unknown is x + 1", ["x"], True),
        ("", ["5"], False),
        ("…", ["5"], False),
        # Only what stands behind the last sign of a conclusion counts.
        ("it is 4, therefore 5", ["5"], True),
    ],
)
def test_open_answers(text, answers, right):
    assert mmmu_open_is_right(text, answers) is right
