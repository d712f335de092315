"""Option letters, as each benchmark reads them; what cannot be read is never an option."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.evaluation.rules.choices import (
    ai2d_letter,
    first_character,
    long_video_bench_letter,
    mlvu_letter,
    mvbench_is_right,
    seed_bench_letter,
    video_mme_letter,
)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(C) a dog", "C"),
        ("The best answer is: D.", "D"),
        ("Answer: A", "A"),
        ("the second one", None),
        ("", None),
        # The published list of openings lacks two commas, so this opening stays and its B is the first capital.
        ("Best option: C", "B"),
        ("E", None),
    ],
)
def test_video_mme(text, letter):
    assert video_mme_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [("Best option: C", "C"), ("E. a boat", "E"), ("The answer is B", "B"), ("no idea", None), ("", None)],
)
def test_long_video_bench(text, letter):
    assert long_video_bench_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "right"),
    [("B) the ball", True), ("(b)", True), ("B.", True), ("b the ball", True), ("(B)the", True), ("A", False),
     ("the ball", False), ("", False), ("(", False), (")", False), ("  ", False)],
)  # fmt: skip
def test_mvbench(text, right):
    assert mvbench_is_right(text, "B") is right


def test_mvbench_unreadable_answers_are_right_for_no_letter():
    assert not any(mvbench_is_right(text, letter) for text in ("", "(", "…", "2") for letter in "ABCDE")


@pytest.mark.parametrize(
    ("text", "letter"), [("B) a cat", "B"), ("(C) a cat", "C"), ("D", "D"), ("D. a cat", None), (")", None), ("", None)]
)
def test_mlvu(text, letter):
    assert mlvu_letter(text) == letter


@pytest.mark.parametrize(
    ("text", "videovista", "seed"), [(" C. x", "C", "C"), ("b", "b", "B"), ("(A)", None, None), ("", None, None)]
)
def test_first_character(text, videovista, seed):
    assert first_character(text) == videovista
    assert seed_bench_letter(text) == seed


@pytest.mark.parametrize(
    ("text", "letter"),
    [("C. moon", "C"), ("c", "C"), ("(D)", "D"), ("moon", None), ("C moon", None), (" c", None), ("", None)],
)
def test_ai2d(text, letter):
    assert ai2d_letter(text) == letter


@given(st.text())
def test_whatever_is_said_is_a_letter_or_none(text):
    for read in (video_mme_letter, long_video_bench_letter, mlvu_letter, seed_bench_letter, ai2d_letter):
        letter = read(text)
        assert letter is None or letter.isascii() == letter.isupper() == (len(letter) == 1)
