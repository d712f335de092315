"""Is this answer right? Normalised exact match, and option letters where the prompt showed them."""

import re
import string
import unicodedata
from collections.abc import Sequence

_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = {"a", "an", "the"}
# "B", "(B)", "B.", "B) red", "Best option: (B)", "The answer is B."; a word that merely starts with B is no letter.
_LETTER = re.compile(
    r"^\W*(?:(?:the\s+)?(?:best\s+|correct\s+)?(?:answer|option)\s*(?:is)?\s*:?\s*)?\(?([A-Z])\s*(?:[).:,]|$)",
    re.IGNORECASE,
)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits, single spaces.

    "The Red-Ball." → "red ball"; "Three" → "3". Articles stay where nothing else would be left.
    """
    text = unicodedata.normalize("NFKC", text).lower().replace("'", "").replace("’", "")
    text = "".join(" " if character in string.punctuation else character for character in text)
    words = [_DIGITS.get(word, word) for word in text.split()]
    return " ".join([word for word in words if word not in _ARTICLES] or words)


def option_letter(text: str) -> str | None:
    """The option letter (A–Z, upper case) that an answer gives, or None: it is never guessed."""
    found = _LETTER.match(text.strip())
    return found.group(1).upper() if found else None


def is_correct(prediction: str, answer: str, *, shown_choices: Sequence[str] | None = None) -> bool:
    """Whether `prediction` equals `answer` after normalisation.

    With `shown_choices` (the options as the prompt lettered them) the letter of the answer counts too; a letter that
    contradicts the text after it decides, and a prediction that is neither a letter nor an option is wrong.
    """
    wanted = normalise_answer(answer)
    if normalise_answer(prediction) == wanted:
        return True
    letter = option_letter(prediction) if shown_choices else None
    if not shown_choices or letter is None:
        return False
    index = ord(letter) - ord("A")
    return index < len(shown_choices) and normalise_answer(shown_choices[index]) == wanted
