import json
import shutil

import numpy as np
import pytest
import torch
import webdataset

from linvt.shards import ShardError, read_cache
from linvt.shards.commit import Tombstone
from linvt.shards.index import write_index
from linvt.shards.layout import INDEX, tar_name
from linvt.shards.sample import tokens_from_bytes
from linvt.shards.storage import open_storage
from tests.shards.cache_builder import FEATURE_ID, pending_sample, save_cache, write_one_shard


@pytest.fixture
def tokens_of_id():
    generator = torch.Generator().manual_seed(0)
    ids = ["b.mp4", "a/a.mp4", "c.webm", "d.png", "e e.mp4"]
    return {name: torch.randn(1 + i, 4, 8, generator=generator).bfloat16() for i, name in enumerate(ids)}


@pytest.fixture
def cache_dir(tmp_path, tokens_of_id):
    save_cache(tmp_path / "cache", tokens_of_id)
    return tmp_path / "cache"


def test_random_access_gives_every_sample_as_it_was_written(cache_dir, tokens_of_id):
    cache = read_cache(str(cache_dir))
    assert (cache.feature_id, cache.hidden_size, len(cache)) == (FEATURE_ID, 8, 5)
    assert set(cache.video_ids) == set(tokens_of_id)
    for video_id in reversed(tokens_of_id):
        video = cache.get(cache.video_ids[video_id])
        tokens = tokens_of_id[video_id]
        assert (video.video_id, video.feature_id, video.kind, video.grid) == (video_id, FEATURE_ID, "video", (1, 4))
        assert video.tokens.dtype == torch.bfloat16
        assert torch.equal(video.tokens, tokens)
        np.testing.assert_array_equal(video.timestamps_s, 0.5 * np.arange(len(tokens)))
        assert video.shot_index.tolist() == [min(i, 1) for i in range(len(tokens))]


def test_iteration_follows_shards_and_keys(cache_dir):
    cache = read_cache(str(cache_dir))
    by_shard = [video.key for shard in cache.shards for video in cache.iter_shard(shard)]
    assert by_shard == list(cache.keys) == [video.key for video in cache]
    assert [len(keys) for keys in cache.shards.values()] == [2, 2, 1]
    with pytest.raises(KeyError, match="shard 7"):
        cache.iter_shard(7)


def test_unknown_key_is_a_key_error(cache_dir):
    cache = read_cache(str(cache_dir))
    assert "b.mp4" not in cache
    with pytest.raises(KeyError, match="video_ids"):
        cache.get("b.mp4")


@pytest.mark.parametrize("damage", ["truncated", "altered", "missing", "no record"])
def test_damaged_shards_are_named_and_the_others_still_read(cache_dir, damage):
    path, record = cache_dir / tar_name(1), cache_dir / "shards/000001.json"
    data = path.read_bytes()
    cache = read_cache(str(cache_dir))
    victim = cache.shards[1][0]
    row = cache.keys.index(victim)
    middle = cache.index["tokens_offset"][row].as_py() + cache.index["tokens_bytes"][row].as_py() // 2
    if damage == "truncated":
        path.write_bytes(data[:middle])
    elif damage == "altered":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    else:
        (path if damage == "missing" else record).unlink()
    with pytest.raises(ShardError, match=r"shards/000001\.tar"):
        cache.get(victim)
    with pytest.raises(ShardError, match=r"shards/000001\.tar"):
        cache.verify()
    assert [video.key for video in cache.iter_shard(0)] == list(cache.shards[0])


def test_a_shard_of_another_extraction_is_refused(cache_dir, tmp_path, tokens_of_id):
    """Same names and sizes, other bytes: what a copy from another run would look like."""
    save_cache(tmp_path / "other", {name: tokens + 1 for name, tokens in tokens_of_id.items()})
    shutil.copytree(tmp_path / "other/shards", cache_dir / "shards", dirs_exist_ok=True)
    cache = read_cache(str(cache_dir))
    with pytest.raises(ShardError, match="altered"):
        cache.get(cache.keys[0])


def test_no_extraction_and_no_samples_are_explained(tmp_path):
    with pytest.raises(ValueError, match="extract_features"):
        read_cache(str(tmp_path))
    storage = open_storage(str(tmp_path))
    tombstone = Tombstone(slot=0, video_id="a", stage="decode", error_class="InvalidData")
    write_index(storage, [write_one_shard(storage, 0, [], (tombstone,))])
    with pytest.raises(ValueError, match=r"videos\.parquet"):
        read_cache(str(tmp_path))


def test_index_refuses_an_id_twice(tmp_path):
    storage = open_storage(str(tmp_path))
    records = [write_one_shard(storage, i, [pending_sample("a.mp4", torch.zeros(1, 1, 1), slot=i)]) for i in range(2)]
    with pytest.raises(ValueError, match=r"a video id must be unique.*a\.mp4"):
        write_index(storage, records)
    assert storage.size_bytes(INDEX) is None


def test_any_fsspec_filesystem_holds_a_cache(tokens_of_id):
    save_cache("memory://some/cache", tokens_of_id)
    cache = read_cache("memory://some/cache")
    assert all(torch.equal(video.tokens, tokens_of_id[video.video_id]) for video in cache)


def test_plain_webdataset_iterates_the_tars(cache_dir, tokens_of_id):
    urls = [str(cache_dir / tar_name(shard)) for shard in range(3)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == list(read_cache(str(cache_dir)).keys)
    for sample in samples:
        info = json.loads(sample["json"])
        assert torch.equal(tokens_from_bytes(sample["tokens.safetensors"]), tokens_of_id[info["video_id"]])


def test_hugging_face_datasets_iterates_the_tars(cache_dir, tokens_of_id, tmp_path):
    from datasets import load_dataset

    dataset = load_dataset(
        "webdataset",
        data_files={"train": str(cache_dir / "shards/*.tar")},
        split="train",
        streaming=True,
        cache_dir=str(tmp_path / "hf"),
    )
    samples = list(dataset)
    assert {sample["json"]["video_id"] for sample in samples} == set(tokens_of_id)
    for sample in samples:
        assert torch.equal(tokens_from_bytes(sample["tokens.safetensors"]), tokens_of_id[sample["json"]["video_id"]])
