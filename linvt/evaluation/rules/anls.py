"""ANLS, DocVQA's measure: how near an answer comes to the nearest of the right ones."""

from collections.abc import Sequence

_THRESHOLD = 0.5


def anls(prediction: str, answers: Sequence[str]) -> float:
    """1 - edits / length against the nearest answer, in [0, 1], and 0 below ½ (Biten et al. 2019, DocVQA's task 1).

    Case and runs of blanks do not matter to the edits; lengths are those of the texts as they are, as in the
    challenge's own script (https://rrc.cvc.uab.es/?ch=17). An empty answer scores 0.
    """
    if not prediction.strip():
        return 0.0
    score = 1 - min(_distance(prediction, answer) for answer in answers)
    return score if score >= _THRESHOLD else 0.0


def _distance(prediction: str, answer: str) -> float:
    length = max(len(prediction.upper()), len(answer.upper()))
    return edit_distance(" ".join(prediction.lower().split()), " ".join(answer.lower().split())) / length


def edit_distance(a: str, b: str) -> int:
    """Levenshtein's distance: the fewest insertions, deletions and substitutions that make one of the other."""
    row = list(range(len(b) + 1))
    for i, of_a in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, of_b in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (of_a != of_b))
    return row[-1]
