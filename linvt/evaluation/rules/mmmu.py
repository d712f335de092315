"""MMMU's reading of answers: an option among the text, or numbers and phrases of an open answer.

https://github.com/MMMU-Benchmark/MMMU, mmmu/utils/eval_utils.py. Where it draws a random option, there is none here.
"""

import re
from collections.abc import Mapping, Sequence

_OFFICIAL_FORMS = ("({})", " {} ")
_LMMS_EVAL_FORMS = ("({})", "{} ", "{}.")
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = {":", ",", ".", "!", "?", ";", "'"}
_NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def mmmu_option(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of one of `options` (letter to text) that an answer names, the last of several; None if there is none.

    "(A)", else " A ", else, in an answer of more than five words, the option's text.
    """
    return _option(text, options, _OFFICIAL_FORMS)


def nextqa_option(text: str, options: Mapping[str, str]) -> str | None:
    """As `mmmu_option`, with the forms of lmms-eval's nextqa/utils.py: "(A)", else "A ", else "A.", else the text."""
    return _option(text, options, _LMMS_EVAL_FORMS)


def _option(text: str, options: Mapping[str, str], forms: Sequence[str]) -> str | None:
    for mark in (",", ".", "!", "?", ";", ":", "'"):
        text = text.strip(mark)
    text = f" {text} "
    for form in forms:
        found = [letter for letter in options if form.format(letter) in text]
        if found:
            # Forms without brackets are all looked up with blanks around; where none is there the first letter wins.
            where = "({})" if form == forms[0] else " {} "
            return _last(found, [text.rfind(where.format(letter)) for letter in found])
    if len(text.split()) > 5:
        lower = text.lower()
        found = [letter for letter, option in options.items() if option.lower() in lower]
        if found:
            return _last(found, [lower.rfind(options[letter].lower()) for letter in found])
    return None


def _last(letters: list[str], places: list[int]) -> str:
    return letters[places.index(max(places))]


def mmmu_open_is_right(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the right answers is within a key phrase of an open answer, or equal to a number in it."""
    wanted = [value for answer in answers for value in _normal(answer)]
    phrases = [phrase for phrase in _key_phrases(text) if phrase]
    said = [value for phrase in phrases for value in _normal(phrase)]
    said += [value for phrase in phrases for number in _numbers(phrase) for value in _normal(number)]
    return any(
        any(isinstance(right, str) and right in value for right in wanted)
        if isinstance(value, str)
        else value in wanted
        for value in said
    )


def _key_phrases(text: str) -> list[str]:
    """For each sentence, what stands behind its last sign of a conclusion; the whole answer if no sentence has one."""
    text = text.strip().strip(".").lower()
    # After lower(), no capital follows a full stop: only line ends part sentences. So it is in the original.
    sentences = text.split("\n")
    phrases = []
    for number, sentence in enumerate(sentences, start=1):
        keys = (*_KEYS, "=") if number == len(sentences) else _KEYS
        tails = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = _shortest(tails)
        if shortest and shortest not in _TRIVIAL:
            phrases.append(shortest)
    return phrases or [text]


def _shortest(tails: Sequence[str]) -> str:
    """The first of the shortest; an empty one is replaced by whatever comes next, as in the original."""
    shortest = ""
    for tail in tails:
        if not shortest or len(tail) < len(shortest):
            shortest = tail
    return shortest


def _normal(text: str) -> list[str | float]:
    """A number rounded to two places, or lower-case text; a single character with a blank on one of its sides."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _numbers(text: str) -> list[str]:
    return [number for pattern in _NUMBERS for number in re.findall(pattern, text)]
