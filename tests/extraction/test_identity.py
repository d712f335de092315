from dataclasses import fields, replace

import pytest

from linvt.extraction.identity import Extraction, FeatureSpec, read_extraction, require_same
from linvt.shards.layout import EXTRACTION
from linvt.shards.storage import open_storage

SPEC = FeatureSpec(
    vision_fingerprint="v",
    max_side=128,
    max_candidates=64,
    cache_dtype="bf16",
    num_frames=8,
    detector="d",
    shot_threshold=0.5,
)
ASKED = Extraction(feature=SPEC, samples_per_shard=4, encode_batch_size=8, encode_dtype="float32", threads_per_worker=1)
_OTHER = {str: "int8", int: 7, float: 0.25, bool: True, type(None): 7}


@pytest.mark.parametrize("name", [field.name for field in fields(FeatureSpec)])
def test_every_field_of_the_spec_changes_the_feature_id(name):
    spec = replace(SPEC, sampling="fps", fps=1.0) if name == "fps" else SPEC
    changed = replace(spec, **{name: _OTHER[type(getattr(spec, name))]})
    assert changed.feature_id != spec.feature_id
    assert len(SPEC.feature_id) == 32


def test_settings_survive_their_file(tmp_path):
    storage = open_storage(str(tmp_path))
    storage.write(EXTRACTION, ASKED.to_json())
    assert read_extraction(storage) == ASKED
    assert SPEC.feature_id in (tmp_path / EXTRACTION).read_text()


def test_the_error_names_exactly_the_fields_that_differ():
    require_same(ASKED, ASKED, "out")
    other = replace(ASKED, encode_batch_size=16, feature=replace(SPEC, num_frames=9))
    with pytest.raises(ValueError, match="other settings") as raised:
        require_same(ASKED, other, "out")
    message = str(raised.value)
    assert "num_frames (there: 8, asked: 9)" in message
    assert "encode_batch_size (there: 8, asked: 16)" in message
    assert message.count("there:") == 2
