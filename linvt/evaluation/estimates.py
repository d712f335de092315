"""Numbers from scored answers, each with a 95% interval."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from linvt.evaluation.entry import Scored
from linvt.evaluation.statistics import mean_score, wilson_score

_RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A number, the ends of its 95% interval, and what it is of."""

    value: float
    low: float
    high: float
    count: int
    """How many answers, or groups of answers, it is of."""
    interval: str
    """ "wilson", "bootstrap" (over media), or "combined" from those of the parts."""


def share(rights: Sequence[bool], *, scale: float = 100.0) -> Estimate:
    """The share of True, in percent, with Wilson's interval."""
    score = wilson_score(sum(rights), len(rights))
    return Estimate(
        value=scale * score.accuracy,
        low=scale * score.low,
        high=scale * score.high,
        count=score.total,
        interval="wilson",
    )


def accuracy(rows: Sequence[Scored]) -> Estimate:
    """The share of right answers, in percent."""
    return share([bool(row.correct) for row in rows])


def mean_over(rows: Sequence[Scored], group: str) -> Estimate:
    """The unweighted mean of the groups' accuracies, in percent."""
    parts = [wilson_score(sum(bool(row.correct) for row in part), len(part)) for part in by(rows, group).values()]
    score = mean_score(parts)
    return Estimate(
        value=100 * score.accuracy,
        low=100 * score.low,
        high=100 * score.high,
        count=score.total,
        interval="combined",
    )


def mean(rows: Sequence[Scored], *, scale: float = 1.0) -> Estimate:
    """The mean score, times `scale`, with a bootstrap over media."""
    return bootstrap(
        rows,
        lambda part: (sum(row.score for row in part), len(part)),
        lambda sums: scale * sums[..., 0] / sums[..., 1],
    )


def bootstrap(
    rows: Sequence[Scored],
    features: Callable[[Sequence[Scored]], Sequence[float]],
    combine: Callable[[np.ndarray], np.ndarray],
) -> Estimate:
    """A statistic that depends on sums over media, with the 2.5% and 97.5% points of its values on 1,000 resamples.

    `features` gives K numbers for the answers about one medium (or about the same media); `combine` makes the statistic
    of sums of them: [..., K] to [...].
    """
    clusters: dict[object, list[Scored]] = defaultdict(list)
    for row in rows:
        # Answers about one medium are not independent of each other.
        clusters[row.media or row.item_id].append(row)
    of_cluster = np.array([features(part) for part in clusters.values()], dtype=np.float64)
    count = len(of_cluster)
    # How often each cluster is drawn, instead of the drawn answers themselves.
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = combine(of_cluster.sum(0))
        low, high = np.nanquantile(combine(drawn @ of_cluster), (0.025, 0.975))
    return Estimate(value=float(value), low=float(low), high=float(high), count=len(rows), interval="bootstrap")


def by(rows: Sequence[Scored], group: str) -> dict[str, list[Scored]]:
    """The rows of each value of a group, in the order of first appearance."""
    parts: dict[str, list[Scored]] = defaultdict(list)
    for row in rows:
        if group in row.groups:
            parts[row.groups[group]].append(row)
    return dict(parts)
