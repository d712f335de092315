"""What counts as the right answer."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.evaluation.scoring import is_correct, normalise_answer, option_letter


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Red-Ball.", "red ball"),
        ("  three\n", "3"),
        ("Ten o'clock", "10 oclock"),
        ("a", "a"),
        ("Ｃａｆé", "café"),
        ("yes!", "yes"),
        ("", ""),
    ],
)
def test_normalise(text, normal):
    assert normalise_answer(text) == normal


@given(st.text(st.characters(codec="latin-1")))
def test_normalise_is_idempotent(text):
    assert normalise_answer(normalise_answer(text)) == normalise_answer(text)


@given(st.lists(st.sampled_from(["red", "left", "7", "kite"]), min_size=1), st.sampled_from(string.punctuation))
def test_case_and_punctuation_do_not_matter(words, mark):
    assert is_correct(mark + " ".join(words).upper() + mark, " ".join(words))


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("B. the red one", "B"),
        ("Best option: (C) red", "C"),
        ("The answer is D.", "D"),
        ("answer: a", "A"),
        ("Blue", None),
        ("a red ball", None),
        ("I think it is red", None),
        ("", None),
    ],
)
def test_option_letter(text, letter):
    assert option_letter(text) == letter


def test_letters_count_only_where_the_prompt_showed_them():
    choices = ("red", "blue")
    assert is_correct("B", "blue", shown_choices=choices)
    assert not is_correct("B", "blue")
    assert not is_correct("A. red", "blue", shown_choices=choices)
    assert not is_correct("F", "blue", shown_choices=choices)
    assert is_correct("Blue.", "blue", shown_choices=choices)
    assert not is_correct("either", "blue", shown_choices=choices)


def test_containing_the_answer_is_not_giving_it():
    assert not is_correct("red or blue", "blue")
