import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.training.order import SampleStream, epoch_members, epoch_order, share_of_rank, visits_per_epoch

shapes = st.lists(st.integers(1, 9), min_size=1, max_size=12)  # samples of each shard


def _columns(samples_of_shard, num_lengths=1):
    shard = np.repeat(np.arange(len(samples_of_shard)), samples_of_shard)
    return shard, np.arange(len(shard)) % num_lengths


@given(samples_of_shard=shapes, seed=st.integers(0, 2**32), epoch=st.integers(0, 50), window=st.integers(1, 5))
def test_an_epoch_visits_every_sample_once(samples_of_shard, seed, epoch, window):
    shard, length = _columns(samples_of_shard, num_lengths=3)
    order = epoch_order(shard, length, seed=seed, epoch=epoch, window_shards=window, batch_size=4)
    assert sorted(order) == list(range(len(shard)))


@given(samples_of_shard=shapes, seed=st.integers(0, 99), window=st.integers(1, 5))
def test_samples_stay_in_their_window_of_shards(samples_of_shard, seed, window):
    shard, length = _columns(samples_of_shard)
    order = epoch_order(shard, length, seed=seed, epoch=3, window_shards=window, batch_size=4)
    # A shard comes back only while its window lasts: at any place at most `window` shards are open.
    visited = shard[order]
    first = {s: np.flatnonzero(visited == s)[0] for s in set(visited)}
    last = {s: np.flatnonzero(visited == s)[-1] for s in set(visited)}
    for place in range(len(visited)):
        assert sum(first[s] <= place <= last[s] for s in first) <= window


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else():
    shard, length = _columns([50] * 8)

    def order(seed, epoch):
        return list(epoch_order(shard, length, seed=seed, epoch=epoch, window_shards=2, batch_size=4))

    np.random.seed(1)
    first = order(0, 0)
    np.random.seed(2)
    assert order(0, 0) == first
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    # Shards and samples are really shuffled: chance alone leaves about one sample in its place.
    assert sum(place == sample for place, sample in enumerate(first)) < 10


def test_the_order_is_the_one_it_has_always_been():
    # If this changes, runs cannot be resumed across the change.
    shard, length = _columns([3, 4, 5], num_lengths=2)
    order = epoch_order(shard, length, seed=7, epoch=2, window_shards=2, batch_size=2)
    assert list(order) == [6, 2, 3, 1, 7, 11, 5, 9, 0, 4, 10, 8]


def test_a_batch_holds_samples_of_similar_length():
    rng = np.random.default_rng(0)
    shard, length = np.arange(640) // 40, rng.integers(4, 129, 640)
    stream = SampleStream(shard, length, seed=0, window_shards=4, batch_size=16)
    batches = [length[stream.batch(start)] for start in range(0, 640, 16)]
    padding = sum(int((batch.max() - batch).sum()) for batch in batches)
    unsorted_padding = sum(int((row.max() - row).sum()) for row in length.reshape(-1, 16))
    assert padding < 0.25 * unsorted_padding
    # Not from short to long: lengths of neighbouring batches don't correlate.
    means = np.array([batch.mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.5


@given(
    samples_of_shard=shapes,
    batch_size=st.integers(1, 7),
    num_lengths=st.integers(1, 4),
    start=st.integers(0, 20),
)
def test_the_stream_is_epoch_after_epoch(samples_of_shard, batch_size, num_lengths, start):
    shard, length = _columns(samples_of_shard, num_lengths)
    count = len(shard)
    stream = SampleStream(shard, length, seed=5, window_shards=2, batch_size=batch_size)
    batches = np.concatenate([stream.batch(i * batch_size) for i in range(-(-3 * count // batch_size))])
    for epoch in range(3):
        assert sorted(batches[epoch * count : (epoch + 1) * count]) == list(range(count))
    # A stream that starts in the middle, as a resumed run does, goes on in the same way.
    fresh = SampleStream(shard, length, seed=5, window_shards=2, batch_size=batch_size)
    assert list(fresh.batch(start * batch_size)) == list(stream.batch(start * batch_size))


@given(batch_size=st.integers(1, 40), world_size=st.integers(1, 8))
def test_the_workers_shares_are_the_batch_on_any_number_of_workers(batch_size, world_size):
    batch = np.random.default_rng(batch_size).permutation(batch_size)
    shares = [share_of_rank(batch, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(shares)) == sorted(batch)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(share_of_rank(batch, 0, 1)) == list(batch)


@given(
    counts=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    weights=st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0]), min_size=4, max_size=4),
    seed=st.integers(0, 99),
)
def test_a_weight_is_how_often_an_epoch_visits_a_sample(counts, weights, seed):
    source = np.repeat(np.arange(len(counts)), counts)
    weights = weights[: len(counts)]
    epochs = [epoch_members(source, weights, seed=seed, epoch=epoch) for epoch in range(8)]
    for number, (count, weight) in enumerate(zip(counts, weights)):
        in_epoch = visits_per_epoch(count, weight)
        assert in_epoch == max(1, round(weight * count + 1e-9))
        visited = [np.bincount(members, minlength=len(source))[source == number] for members in epochs]
        for epoch, times in enumerate(visited):
            assert times.sum() == in_epoch
            assert times.max() - times.min() <= 2
            # Over epochs, samples of one source are visited equally often, to within one.
            so_far = np.sum(visited[: epoch + 1], axis=0)
            assert so_far.max() - so_far.min() <= 1
        if weight in (1.0, 2.0, 3.0):
            assert all((times == weight).all() for times in visited)


def test_half_of_a_source_is_its_other_half_next_time():
    source = np.zeros(10, int)
    first, second = (list(epoch_members(source, [0.5], seed=3, epoch=epoch)) for epoch in (0, 1))
    assert sorted(first + second) == list(range(10))
    assert first not in (list(range(5)), list(epoch_members(source, [0.5], seed=4, epoch=0)))


@given(start=st.integers(0, 40), batch_size=st.integers(1, 7))
def test_a_mixture_is_an_endless_stream_of_epochs_too(start, batch_size):
    shard, length = _columns([3, 4, 5], num_lengths=2)
    source = np.arange(12) % 2

    def stream():
        return SampleStream(
            shard,
            length,
            seed=5,
            window_shards=2,
            batch_size=batch_size,
            source_of_sample=source,
            weights=[0.5, 2.0],
        )

    assert stream().samples_per_epoch == 3 + 12
    whole, fresh = stream(), stream()
    batches = np.concatenate([whole.batch(i * batch_size) for i in range(-(-45 // batch_size))])
    for epoch in range(3):
        of_epoch = batches[epoch * 15 : (epoch + 1) * 15]
        assert sorted(of_epoch) == list(epoch_members(source, [0.5, 2.0], seed=5, epoch=epoch))
    assert list(fresh.batch(start * batch_size)) == list(whole.batch(start * batch_size))


def test_nothing_to_order_is_an_error():
    with pytest.raises(ValueError, match="no samples"):
        epoch_order(np.array([]), np.array([]), seed=0, epoch=0, window_shards=1, batch_size=1)
