"""TextVQA's accuracy: agreement with ten people's answers, after the normalisation of the VQA challenges.

https://github.com/facebookresearch/mmf, `EvalAIAnswerProcessor` and `TextVQAAccuracyEvaluator`.
"""

import re
from collections.abc import Sequence

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
# The original's first condition, `(?!<=\d)`, is a slip that is always true: full stops go unless a digit follows.
_FULL_STOP = re.compile(r"\.(?!\d)")
# The original passes re.UNICODE, which is 32, where the count of replacements stands.
_MOST_FULL_STOPS = 32
_ARTICLES = {"a", "an", "the"}
_NUMBERS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}

_REGULAR = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've there'd've
    they'd've we'd've who'd've wouldn't've you'd've
"""
_IRREGULAR = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've",
    "somebody'dve": "somebody'd've",
    "yall'll": "y'all'll",
    "y'allll": "y'all'll",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _without_one_apostrophe(word: str) -> dict[str, str]:
    """The ways to leave out one of a contraction's apostrophes, each with the contraction."""
    places = [i for i, character in enumerate(word) if character == "'"]
    return {word[:i] + word[i + 1 :]: word for i in places}


_CONTRACTIONS = dict(_IRREGULAR)
for _word in _REGULAR.split():
    _CONTRACTIONS |= _without_one_apostrophe(_word)


def normalise_vqa(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits, contractions with their apostrophes."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    text = _without_punctuation(text)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    stripped = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text) is not None
        stripped = stripped.replace(mark, "" if beside_blank else " ")
    return _FULL_STOP.sub("", stripped, count=_MOST_FULL_STOPS)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The mean, over leaving out each of the people, of min(1, others who said the same / 3)."""
    said, given = normalise_vqa(prediction), [normalise_vqa(answer) for answer in answers]
    if not said:
        return 0.0
    shares = [min(1.0, (given.count(said) - (answer == said)) / 3) for answer in given]
    return sum(shares) / len(shares)
