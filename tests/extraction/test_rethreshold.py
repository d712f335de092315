"""Another shot threshold without Ray; tests/pipelines/test_rethreshold.py has the whole of it."""

import io
from collections.abc import Collection, Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from linvt.extraction.assembly import assemble_shard
from linvt.extraction.choice import choose_frames
from linvt.extraction.config import ExtractConfig
from linvt.extraction.decode import decode_input
from linvt.extraction.encode import encode_input
from linvt.extraction.existing import committed_shards, finish_extraction
from linvt.extraction.identity import Extraction, FeatureSpec, read_extraction, rethresholded
from linvt.extraction.inputs import list_inputs
from linvt.extraction.plan import Plan, make_plan, write_plan
from linvt.extraction.rethreshold import bring_over, forecast, rechoose
from linvt.extraction.rows import STAGE_SECONDS, rows_from_table, rows_to_table
from linvt.extraction.spool import spooled_slots, write_spooled
from linvt.shards import read_cache
from linvt.shards.commit import ShardError, read_record
from linvt.shards.layout import EXTRACTION
from linvt.shards.storage import Storage, open_storage
from tests.media import write_image, write_video

OLD = Extraction(
    feature=FeatureSpec(
        vision_fingerprint="v",
        max_side=48,
        max_candidates=64,
        cache_dtype="bf16",
        num_frames=4,
        detector="scripted",
        shot_threshold=0.5,
    ),
    samples_per_shard=3,
    encode_batch_size=4,
    encode_dtype="float32",
    threads_per_worker=1,
)
NEW = replace(OLD, feature=replace(OLD.feature, shot_threshold=0.7))


class _Scripted:
    """A shot ends after the first fifth of the frames, with a probability between the thresholds."""

    name = fingerprint = "scripted"

    def predict(self, frames: np.ndarray) -> np.ndarray:
        return self.predict_stream([frames])

    def predict_stream(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        count = sum(map(len, chunks))
        probabilities = np.zeros(count, np.float32)
        probabilities[count // 5 : count // 5 + 1] = 0.6
        return probabilities


class _MeanColour:
    """One token a frame."""

    def encode_frames(self, frames: np.ndarray, *, batch_size: int, kind: str) -> Any:
        tokens = torch.from_numpy(frames.astype(np.float32)).mean(dim=(1, 2))[:, None]
        return SimpleNamespace(tokens=tokens, grid=(1, 1))


def _work(storage: Storage, plan: Plan, asked: Extraction, slots: Collection[int]) -> None:
    """The stages, and the assembly of what is complete by them."""
    spec, backbone = asked.feature, _MeanColour()
    for planned in plan.rows:
        if planned.slot not in slots:
            continue
        row, frames = decode_input(planned, _Scripted(), spec)
        info_json = tokens = None
        if planned.media.video_id.startswith("refused"):
            row = row.quarantined("encode", "FramesRefused", "why")
        elif frames is not None:
            row, info_json, tokens = encode_input(row, frames, backbone, spec, batch_size=4, device="cpu")  # type: ignore[arg-type]
        write_spooled(storage, row, spec.feature_id, info_json, tokens)
    for shard in plan.shards.values():
        if any(planned.slot in slots for planned in shard):
            assemble_shard(storage, tuple(shard), plan.hashes[0], spec.feature_id)


def _fresh(uri: str, plan: Plan, asked: Extraction) -> Storage:
    storage = open_storage(uri)
    storage.write(EXTRACTION, asked.to_json())
    write_plan(storage, plan)
    _work(storage, plan, asked, range(len(plan)))
    finish_extraction(storage, plan, committed_shards(storage, plan, asked.feature.feature_id, contents=True))
    return storage


@pytest.fixture
def corpus(tmp_path):
    """In the order of slots: two shards of three."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "broken.mp4").write_bytes(b"\0" * 64)
    write_image(folder / "image.png")
    write_video(folder / "long.mp4", shot_lengths=(40,))
    write_video(folder / "refused.mp4", shot_lengths=(3,))
    write_video(folder / "refused_long.mp4", shot_lengths=(40,), seed=1)
    write_video(folder / "short.mp4", shot_lengths=(4,), seed=2)
    return folder


@pytest.fixture
def inputs(corpus):
    return list_inputs(str(corpus))


@pytest.fixture
def plan(inputs):
    return make_plan(inputs, 3)


@pytest.fixture
def storage(plan, tmp_path):
    return _fresh(str(tmp_path / "out"), plan, OLD)


def _committed(storage: Storage, plan: Plan, asked: Extraction):
    return committed_shards(storage, plan, asked.feature.feature_id, contents=True, outdated=asked.outdated_feature_ids)


def _files(storage: Storage) -> dict[str, Any]:
    files: dict[str, Any] = {name: storage.read(f"shards/{name}") for name in storage.names("shards")}
    rows = pq.read_table(io.BytesIO(storage.read("videos.parquet"))).drop_columns(list(STAGE_SECONDS.values()))
    return files | {"index": storage.read("index.parquet"), "rows": rows.to_pylist()}


def test_images_and_short_videos_keep_their_tokens_and_the_quarantined_stay_so(storage, plan, inputs, tmp_path):
    asked = rethresholded(OLD, NEW)
    assert asked.outdated_feature_ids == (OLD.feature.feature_id,)
    brought = bring_over(storage, plan, inputs, asked, _committed(storage, plan, asked))
    assert brought == {}
    assert read_extraction(storage) == asked
    with pytest.raises(ValueError, match=r"no index\.parquet"):
        read_cache(storage.uri)
    # broken, image, refused, short; a video whose other frames might not be refused is tried again.
    assert spooled_slots(storage, NEW.feature.feature_id) == {0, 1, 3, 5}
    _work(storage, plan, NEW, {2, 4})
    finish_extraction(storage, plan, _committed(storage, plan, NEW))
    assert _files(storage) == _files(_fresh(str(tmp_path / "fresh"), plan, NEW))


def test_rows_of_an_earlier_version_are_decoded_again(storage, plan):
    spec = NEW.feature
    assert rechoose(storage, plan.shards, spec).decoded_again == {2, 4}
    for name in storage.names("rows"):
        table = pq.read_table(io.BytesIO(storage.read(f"rows/{name}")))
        with storage.open_atomic(f"rows/{name}") as file:
            pq.write_table(table.drop_columns(["timestamps_s", "candidate_frames"]), file)
    rechoice = rechoose(storage, plan.shards, spec)
    assert (rechoice.num_kept, rechoice.decoded_again) == (1, {1, 2, 3, 4, 5})


def test_a_forecast_without_an_extraction_is_refused(corpus, tmp_path):
    config = ExtractConfig(
        videos=str(corpus), backbone="tiny", out=str(tmp_path / "none"), on_existing="resume", rethreshold=True
    )
    with pytest.raises(ValueError, match=r"none holds no extraction whose threshold could be changed"):
        forecast(config)


def test_sampling_that_minds_no_shots_keeps_all_frames(corpus, plan, tmp_path):
    uniform = replace(OLD, feature=replace(OLD.feature, sampling="uniform"))
    storage = _fresh(str(tmp_path / "uniform"), plan, uniform)
    rechoice = rechoose(storage, plan.shards, replace(uniform.feature, shot_threshold=0.7))
    assert (rechoice.num_kept, rechoice.decoded_again) == (6, frozenset())


def test_altered_tokens_get_no_new_record(storage, plan, inputs, tmp_path):
    asked = rethresholded(OLD, NEW)
    committed = _committed(storage, plan, asked)
    record = read_record(storage, 1)
    assert record is not None
    path = tmp_path / "out/shards/000001.tar"
    data = bytearray(path.read_bytes())
    data[record.samples[0].tokens.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        ShardError, match=r"000001\.tar: its bytes differ from a sha256 in its commit record; remove it"
    ):
        bring_over(storage, plan, inputs, asked, committed)


def test_a_probability_at_the_threshold_is_on_the_same_side_when_it_comes_back(corpus):
    """Rows give it in double precision, in which it may lie above."""
    spec = replace(OLD.feature, shot_threshold=0.6)
    [planned] = make_plan(list_inputs(str(corpus / "long.mp4")), 3).rows
    row, _ = decode_input(planned, _Scripted(), spec)
    [back] = rows_from_table(rows_to_table([row]))
    assert max(back.boundary_probabilities) > 0.6
    assert row.shots == choose_frames(back, spec).shots == [[0, 40]]


def test_outdated_ids_gather_until_they_are_brought_over():
    third = replace(OLD, feature=replace(OLD.feature, shot_threshold=0.1))
    ids = [extraction.feature.feature_id for extraction in (OLD, NEW)]
    assert rethresholded(OLD, OLD).outdated_feature_ids == ()
    assert rethresholded(rethresholded(OLD, NEW), NEW).outdated_feature_ids == (ids[0],)
    assert rethresholded(rethresholded(OLD, NEW), third).outdated_feature_ids == (ids[0], ids[1])
    assert rethresholded(rethresholded(OLD, NEW), OLD).outdated_feature_ids == (ids[1],)
