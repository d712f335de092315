"""The order of training samples: a pure function of (seed, epoch), whatever the number of workers.

An epoch visits shards in a random order and shuffles the samples of a few neighbouring shards together, so a worker
reads each shard once and near in time. Epochs follow each other as one endless stream; batch i of B samples is the
stream's [i·B, (i+1)·B), and rank r of W takes every W-th sample of it from r on. The cursor of a run is therefore one
number, `samples_consumed`, and means the same on any number of workers.

In a mixture a source's samples come more or less often than once an epoch, see `epoch_members`.

Randomness is Philox's raw bits, ranked. NumPy keeps the streams of its bit generators stable across versions, which it
does not promise for `shuffle` and `permutation`.
"""

import math
from collections.abc import Sequence

import numpy as np

_POOL_BATCHES = 16
_SHARDS, _SAMPLES, _BATCHES = range(3)
# Beyond the number of any pool of batches.
_SOURCES = 1 << 48


def _random_ranks(count: int, seed: int, epoch: int, purpose: int) -> np.ndarray:
    """A random permutation of range(count), int64 [count]."""
    bits = np.random.Philox(key=np.array([seed, epoch], np.uint64), counter=purpose << 64).random_raw(count)
    return np.argsort(np.atleast_1d(bits), kind="stable")


def epoch_order(
    shard_of_sample: np.ndarray,
    length_of_sample: np.ndarray,
    *,
    seed: int,
    epoch: int,
    window_shards: int,
    batch_size: int,
) -> np.ndarray:
    """The samples of one epoch in the order of training: a permutation of range(S), int64 [S].

    shard_of_sample: integer [S], the shard that holds sample s. length_of_sample: [S], any measure of its length:
    inside pools of 16 batches samples are sorted by it, so a batch pads little, and the batches are shuffled again.
    """
    num_samples = len(shard_of_sample)
    if num_samples == 0:
        raise ValueError("no samples to order")
    _, shard = np.unique(shard_of_sample, return_inverse=True)
    num_shards = int(shard.max()) + 1
    rank_of_shard = np.empty(num_shards, np.int64)
    rank_of_shard[_random_ranks(num_shards, seed, epoch, _SHARDS)] = np.arange(num_shards)
    window = rank_of_shard[shard] // window_shards
    shuffled = _random_ranks(num_samples, seed, epoch, _SAMPLES)
    order = shuffled[np.argsort(window[shuffled], kind="stable")]
    # Batches run across the border of epochs: the first samples of this one complete the last batch of the one before.
    first_batch_start = -epoch * num_samples % batch_size
    return _group_by_length(order, length_of_sample, seed, epoch, batch_size, first_batch_start)


def _group_by_length(
    order: np.ndarray, length: np.ndarray, seed: int, epoch: int, batch_size: int, first_batch_start: int
) -> np.ndarray:
    if len(np.unique(length)) == 1:
        return order
    parts = [order[:first_batch_start]]
    pool_size = _POOL_BATCHES * batch_size
    for pool_index, start in enumerate(range(first_batch_start, len(order), pool_size)):
        pool = order[start : start + pool_size]
        pool = pool[np.argsort(length[pool], kind="stable")]
        num_whole = len(pool) // batch_size
        batches = pool[: num_whole * batch_size].reshape(num_whole, batch_size)
        parts += [batches[_random_ranks(num_whole, seed, epoch, _BATCHES + pool_index)].ravel()]
        parts += [pool[num_whole * batch_size :]]
    return np.concatenate(parts)


def visits_per_epoch(num_samples: int, weight: float) -> int:
    """How many visits a source of that weight brings to every epoch: weight · samples, rounded, one at least."""
    return max(1, math.floor(weight * num_samples + 0.5)) if num_samples else 0


def epoch_members(source_of_sample: np.ndarray, weights: Sequence[float], *, seed: int, epoch: int) -> np.ndarray:
    """Which samples an epoch visits, int64, ascending; a sample that it visits twice is there twice.

    Source i brings m = `visits_per_epoch` of its samples: those at places [epoch · m, (epoch + 1) · m) of an endless
    stream of its shuffled samples, one shuffle after the other. So with weight 1 every epoch has each sample once, with
    weight 2 twice, and with weight ½ two epochs together have each once.
    """
    members: list[np.ndarray] = []
    for source, weight in enumerate(weights):
        samples = np.flatnonzero(source_of_sample == source)
        count = visits_per_epoch(len(samples), weight)
        if count == len(samples):
            members.append(samples)
            continue
        rounds, places = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(samples))
        for number in np.unique(rounds):
            shuffled = _random_ranks(len(samples), seed, int(number), _SOURCES + source)
            members.append(samples[shuffled[places[rounds == number]]])
    return np.sort(np.concatenate(members))


class SampleStream:
    """The endless stream of sample numbers: epoch 0's order, then epoch 1's, and so on."""

    def __init__(
        self,
        shard_of_sample: np.ndarray,
        length_of_sample: np.ndarray,
        *,
        seed: int,
        window_shards: int,
        batch_size: int,
        source_of_sample: np.ndarray | None = None,
        weights: Sequence[float] = (1.0,),
    ) -> None:
        """`source_of_sample` and `weights` as for `epoch_members`; without them, every epoch has every sample once."""
        self.source_of_sample = np.zeros(len(shard_of_sample), int) if source_of_sample is None else source_of_sample
        self.weights = tuple(weights)
        counts = np.bincount(self.source_of_sample, minlength=len(self.weights))
        self.samples_per_epoch = sum(map(visits_per_epoch, counts.tolist(), self.weights))
        self.shard_of_sample = shard_of_sample
        self.length_of_sample = length_of_sample
        self.seed = seed
        self.window_shards = window_shards
        self.batch_size = batch_size
        self._epoch_in_memory: tuple[int, np.ndarray] | None = None

    def batch(self, samples_consumed: int) -> np.ndarray:
        """The `batch_size` sample numbers that follow the first `samples_consumed` of the stream, int64 [B]."""
        positions = np.arange(samples_consumed, samples_consumed + self.batch_size)
        epochs, offsets = np.divmod(positions, self.samples_per_epoch)
        return np.concatenate([self._order_of(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._epoch_in_memory is None or self._epoch_in_memory[0] != epoch:
            members = epoch_members(self.source_of_sample, self.weights, seed=self.seed, epoch=epoch)
            order = epoch_order(
                self.shard_of_sample[members],
                self.length_of_sample[members],
                seed=self.seed,
                epoch=epoch,
                window_shards=self.window_shards,
                batch_size=self.batch_size,
            )
            self._epoch_in_memory = (epoch, members[order])
        return self._epoch_in_memory[1]


def share_of_rank(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Every `world_size`-th sample of a global batch from `rank` on; together the ranks' shares are the batch."""
    return batch[rank::world_size]
