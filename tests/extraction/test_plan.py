import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linvt.extraction.inputs import Listing, MediaFile
from linvt.extraction.plan import changed_inputs, grow_plan, make_plan, read_plan, with_media, write_plan
from linvt.shards.storage import open_storage


def _media(video_id: str, size_bytes: int | None = 1) -> MediaFile:
    return MediaFile(video_id=video_id, uri=f"/v/{video_id}", size_bytes=size_bytes, modified="1.5")


_IDS = st.sets(st.text("abc/", min_size=1, max_size=4), max_size=40)
_SLOTS = st.integers(1, 7)


@given(_IDS, _SLOTS, st.randoms(use_true_random=False))
def test_a_plan_is_a_function_of_the_set_of_inputs(ids, samples_per_shard, random_order):
    order = sorted(ids)
    random_order.shuffle(order)
    plan = make_plan(map(_media, order), samples_per_shard)
    assert plan == make_plan(map(_media, sorted(ids)), samples_per_shard)
    assert [row.media.video_id for row in plan.rows] == sorted(ids)
    assert [row.slot for row in plan.rows] == list(range(len(ids)))
    assert all(row.shard == row.slot // samples_per_shard for row in plan.rows)


@given(st.lists(_IDS, min_size=1, max_size=4), _SLOTS)
def test_growing_moves_nothing_and_loses_nothing(batches, samples_per_shard):
    plan = make_plan([], samples_per_shard)
    for ids in batches:
        grown = grow_plan(plan, Listing.of(map(_media, sorted(ids, reverse=True))))
        assert grown.rows[: len(plan.rows)] == plan.rows
        assert grown.hashes[: plan.num_generations] == plan.hashes[: plan.num_generations]
        new = grown.rows[len(plan.rows) :]
        assert {row.generation for row in new} <= {plan.num_generations}
        assert not {row.shard for row in new} & {row.shard for row in plan.rows}
        plan = grown
    assert {row.media.video_id for row in plan.rows} == set().union(*batches)
    slots = [row.slot for row in plan.rows]
    assert slots == sorted(set(slots))
    assert all(row.shard == row.slot // samples_per_shard for row in plan.rows)
    assert all(len(rows) <= samples_per_shard for rows in plan.shards.values())
    assert grow_plan(plan, Listing.of(row.media for row in plan.rows)) is not None
    assert grow_plan(plan, Listing.of(row.media for row in plan.rows)) == plan


def test_hash_depends_on_slots_and_ids_only():
    plan = make_plan(map(_media, "abcde"), 2)
    touched = with_media(plan, {"b": replace(_media("b"), modified="9", uri="/moved/b")})
    assert touched != plan
    assert touched.hashes == plan.hashes
    assert make_plan(map(_media, "abcdf"), 2).hashes != plan.hashes
    assert make_plan(map(_media, "abcde"), 3).hashes != plan.hashes


def test_a_plan_survives_its_file(tmp_path):
    storage = open_storage(str(tmp_path))
    plan = grow_plan(make_plan(map(_media, random.Random(0).sample("abcdefgh", 5)), 2), Listing.of([_media("z", None)]))
    assert plan.num_generations == 2
    write_plan(storage, plan)
    assert read_plan(storage) == plan
    first = storage.read("plan.parquet")
    write_plan(storage, plan)
    assert storage.read("plan.parquet") == first


def test_a_plan_altered_by_hand_is_refused(tmp_path):
    import pyarrow.parquet as pq

    storage = open_storage(str(tmp_path))
    write_plan(storage, make_plan(map(_media, "abc"), 2))
    path = tmp_path / "plan.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    with pytest.raises(ValueError, match=r"plan\.parquet: its rows do not match its hash"):
        read_plan(storage)


def test_changed_inputs_are_those_whose_listing_differs():
    plan = make_plan(map(_media, "abcd"), 2)
    now = [_media("a"), _media("b", 2), replace(_media("c"), modified="2"), _media("new")]
    assert [(row.media.video_id, media) for row, media in changed_inputs(plan, Listing.of(now))] == [
        ("b", now[1]),
        ("c", now[2]),
    ]
