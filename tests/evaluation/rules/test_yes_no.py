"""Yes and no, as POPE, MME, HallusionBench and TempCompass read them."""

import pytest

from linvt.evaluation.rules.tempcompass import caption_matching_is_right, multi_choice_is_right, yes_no_is_right
from linvt.evaluation.rules.yes_no import all_right, hallusion_answer, mme_answer, pope_answer


@pytest.mark.parametrize(
    ("text", "pope", "mme", "hallusion"),
    [
        ("Yes", "yes", "yes", "yes"),
        ("no.", "no", "no", "no"),
        ("NO", "yes", "no", "no"),  # POPE knows the words No, no and not; everything else is a yes there
        ("There is no dog", "no", None, "no"),
        ("It is not. Yes", "no", None, "yes"),
        ("Yes, there is. No doubt", "yes", "yes", None),
        ("nothing", "yes", "no", None),  # MME looks at the first four characters
        ("maybe", "yes", None, None),
        ("", None, None, None),
    ],
)
def test_yes_or_no(text, pope, mme, hallusion):
    assert (pope_answer(text), mme_answer(text), hallusion_answer(text)) == (pope, mme, hallusion)


def test_a_group_is_right_if_all_of_it_is():
    assert all_right([("a", True), ("b", True), ("a", False), ("c", False), ("b", True)]) == [False, True, False]


@pytest.mark.parametrize(
    ("text", "right"),
    [("B. dribbling", True), ("B", True), ("B) it", True), ("A. dribbling", False), ("C", False), ("dribbling", None),
     ("(B)", None), ("", None)],
)  # fmt: skip
def test_tempcompass_multi_choice(text, right):
    assert multi_choice_is_right(text, "B. dribbling") is right


@pytest.mark.parametrize(("text", "right"), [("Yes, it is", True), ("no", False), ("Nope", False), ("I", None)])
def test_tempcompass_yes_no(text, right):
    assert yes_no_is_right(text, "yes") is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Caption B: It shrinks.", True),
        ("It shrinks.", True),
        ("Caption B", True),
        ("B", True),
        ("B.", True),
        ("(B) It shrinks.", True),
        ("Caption A", False),
        ("It grows.", False),
        ("the second", None),
        ("", None),
    ],
)
def test_tempcompass_caption_matching(text, right):
    question = "Which caption matches the video better?\nCaption A: It grows.\nCaption B: It shrinks."
    assert caption_matching_is_right(text, question, "Caption B: It shrinks.") is right
