import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from linvt.shards.layout import sample_key
from linvt.shards.sample import CachedVideo, SampleInfo, tokens_from_bytes, tokens_to_bytes

_VALUES = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=3, max_dims=3, max_side=5),
    elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=False),
)


@given(_VALUES)
def test_bf16_tokens_come_back_rounded_once(values):
    tokens = torch.from_numpy(values)
    restored = tokens_from_bytes(tokens_to_bytes(tokens, "bf16"))
    assert restored.dtype == torch.bfloat16
    assert torch.equal(restored, tokens.to(torch.bfloat16))


@given(_VALUES)
def test_int8_error_is_at_most_half_a_step_of_its_own_token(values):
    tokens = torch.from_numpy(values)
    restored = tokens_from_bytes(tokens_to_bytes(tokens, "int8"))
    step = tokens.abs().amax(-1, keepdim=True) / 127
    # bfloat16 keeps 8 bits, so the result is rounded by up to 2^-8 of itself once more.
    bound = step / 2 + tokens.abs() * 2**-7 + 1e-30
    assert restored.dtype == torch.bfloat16
    assert ((restored.float() - tokens).abs() <= bound).all()


def test_int8_is_half_the_bytes_and_keeps_a_zero_token_zero():
    tokens = torch.randn(4, 9, 256, generator=torch.Generator().manual_seed(0))
    tokens[1, 3] = 0
    small, large = tokens_to_bytes(tokens, "int8"), tokens_to_bytes(tokens, "bf16")
    assert len(small) < 0.53 * len(large)
    assert (tokens_from_bytes(small)[1, 3] == 0).all()


def test_unknown_dtype_and_foreign_files_are_refused():
    with pytest.raises(ValueError, match="fp4"):
        tokens_to_bytes(torch.zeros(1, 1, 1), "fp4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="not a safetensors file"):
        tokens_from_bytes(b"\x80\x04\x95 a pickle")


def _info(**changes) -> SampleInfo:
    fields = {
        "key": "0" * 32,
        "video_id": "a/b.mp4",
        "uri": "/v/a/b.mp4",
        "sha256": "1" * 64,
        "kind": "video",
        "grid": (2, 3),
        "timestamps_s": (0.0, 1 / 3),
        "duration_s": 2 / 3,
        "shots": ((0.0, 2 / 3),),
        "shot_index": (0, 0),
        "feature_id": "f" * 32,
    }
    return SampleInfo(**fields | changes)


@pytest.mark.parametrize("grid", [(2, 3), None])
def test_info_survives_json_exactly(grid):
    info = _info(grid=grid)
    assert SampleInfo.from_json(info.to_json()) == info


def test_cached_video_checks_its_shapes():
    video = CachedVideo.from_info(_info(), torch.zeros(2, 6, 4, dtype=torch.bfloat16))
    assert video.shots.shape == (1, 2)
    with pytest.raises(ValueError, match=r"a/b.mp4.*\(3, 6, 4\).*2 timestamps"):
        CachedVideo.from_info(_info(), torch.zeros(3, 6, 4))
    with pytest.raises(ValueError, match="does not have 5 patches"):
        CachedVideo.from_info(_info(), torch.zeros(2, 5, 4))


def test_key_depends_on_content_stretch_and_id():
    keys = {
        sample_key("1" * 64, "a.mp4"),
        sample_key("2" * 64, "a.mp4"),
        sample_key("1" * 64, "b.mp4"),
        sample_key("1" * 64, "a.mp4", 0.0),
        sample_key("1" * 64, "a.mp4", 0.0, 2.0),
        sample_key("1" * 64, "a.mp4", None, 2.0),
    }
    assert len(keys) == 6
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in keys)
