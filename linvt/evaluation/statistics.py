"""How sure an accuracy is: Wilson intervals, and an interval for the mean of several accuracies."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """An accuracy in [0, 1] with the ends of its confidence interval."""

    accuracy: float
    low: float
    high: float
    correct: int
    total: int


def wilson_score(correct: int, total: int, *, confidence: float = 0.95) -> Score:
    """The accuracy of `correct` out of `total` with Wilson's score interval (Wilson 1927).

    Unlike the textbook p ± z·√(p(1-p)/n), it stays inside [0, 1] and keeps its width at 0% and 100%. It takes the
    questions as independent; several questions on one video are not quite, so read it as a lower bound on the doubt.
    """
    if total <= 0 or not 0 <= correct <= total:
        raise ValueError(f"expected 0 ≤ correct ≤ total and total > 0, got correct={correct}, total={total}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = correct / total
    centre = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    # At 0% and 100% the formula's ends are exactly 0 and 1 but for rounding.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == total else min(1.0, centre + half)
    return Score(accuracy=p, low=low, high=high, correct=correct, total=total)


def mean_score(scores: Sequence[Score]) -> Score:
    """The unweighted mean of independent accuracies, with an interval recovered from theirs (Zou and Donner 2008).

    Each side of the interval is the root of the summed squares of that side's distances, over the number of scores.
    """
    if not scores:
        raise ValueError("the mean of no scores is undefined; give at least one")
    n = len(scores)
    mean = sum(score.accuracy for score in scores) / n
    below = sqrt(sum((score.accuracy - score.low) ** 2 for score in scores)) / n
    above = sqrt(sum((score.high - score.accuracy) ** 2 for score in scores)) / n
    return Score(
        accuracy=mean,
        low=max(0.0, mean - below),
        high=min(1.0, mean + above),
        correct=sum(score.correct for score in scores),
        total=sum(score.total for score in scores),
    )
