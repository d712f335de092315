"""The order of training samples: a pure function of (seed, epoch), whatever the number of workers.

An epoch visits shards in a random order and shuffles the samples of a few neighbouring shards together, so a worker
reads each shard once and near in time. Epochs follow each other as one endless stream; batch i of B samples is the
stream's [i·B, (i+1)·B), and rank r of W takes every W-th sample of it from r on. The cursor of a run is therefore one
number, `samples_consumed`, and means the same on any number of workers.

Randomness is Philox's raw bits, ranked. NumPy keeps the streams of its bit generators stable across versions, which it
does not promise for `shuffle` and `permutation`.
"""

import numpy as np

_POOL_BATCHES = 16
_SHARDS, _SAMPLES, _BATCHES = range(3)


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
    ) -> None:
        self.shard_of_sample = shard_of_sample
        self.length_of_sample = length_of_sample
        self.seed = seed
        self.window_shards = window_shards
        self.batch_size = batch_size
        self._epoch_in_memory: tuple[int, np.ndarray] | None = None

    def batch(self, samples_consumed: int) -> np.ndarray:
        """The `batch_size` sample numbers that follow the first `samples_consumed` of the stream, int64 [B]."""
        num_samples = len(self.shard_of_sample)
        positions = np.arange(samples_consumed, samples_consumed + self.batch_size)
        epochs, offsets = np.divmod(positions, num_samples)
        return np.concatenate([self._order_of(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)])

    def _order_of(self, epoch: int) -> np.ndarray:
        if self._epoch_in_memory is None or self._epoch_in_memory[0] != epoch:
            order = epoch_order(
                self.shard_of_sample,
                self.length_of_sample,
                seed=self.seed,
                epoch=epoch,
                window_shards=self.window_shards,
                batch_size=self.batch_size,
            )
            self._epoch_in_memory = (epoch, order)
        return self._epoch_in_memory[1]


def share_of_rank(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """Every `world_size`-th sample of a global batch from `rank` on; together the ranks' shares are the batch."""
    return batch[rank::world_size]
