"""Still images as one-frame videos."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from linvt.video import MediaError, decode_video

PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:20] = (200, 40, 40)
PICTURE[20:, :30] = (40, 200, 40)
PICTURE[20:, 30:] = (40, 40, 200)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_an_image_is_one_frame_at_time_zero(tmp_path: Path, name: str) -> None:
    Image.fromarray(PICTURE).save(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "no_extension")  # the content says that it is an image
    video = decode_video(tmp_path / "no_extension", max_side=30, max_candidates=4)
    assert (video.info.kind, video.info.num_frames, video.info.duration_s) == ("image", 1, 0.0)
    assert (video.info.width, video.info.height) == (60, 40)
    assert video.timestamps_s.tolist() == [0.0]
    frames, indices = video.pool.get([0])
    assert (frames.shape, indices.tolist()) == ((1, 20, 30, 3), [0])
    assert video.detector_frames.shape == (1, 27, 48, 3)
    for seen in (frames[0], video.detector_frames[0]):
        height, width = seen.shape[:2]
        corners = [seen[2, 2], seen[height - 3, 2], seen[height - 3, width - 3]]
        assert [int(corner.argmax()) for corner in corners] == [0, 1, 2]


@pytest.mark.parametrize("tag", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, tag: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    video = decode_video(tmp_path / "a.png", max_side=60, max_candidates=1)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    assert (video.info.height, video.info.width) == expected.shape[:2]
    np.testing.assert_array_equal(video.pool.get([0])[0][0], expected)
    assert video.info.rotation_deg == {3: 180, 6: -90, 8: 90}.get(tag, video.info.rotation_deg)


def test_broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x011A] = 6, 72.0
    Image.fromarray(PICTURE).save(tmp_path / "a.png", exif=exif)
    content = (tmp_path / "a.png").read_bytes()
    at = content.index(b"eXIf")
    size = int.from_bytes(content[at - 4 : at], "big")
    # The resolution's type becomes text: turning the image with Pillow would trip over it.
    block = bytearray(content[at : at + 4 + size])
    entry = block.index(b"\x01\x1a\x00\x05")
    block[entry + 2 : entry + 4] = b"\x00\x02"
    (tmp_path / "a.png").write_bytes(
        content[:at] + bytes(block) + zlib.crc32(block).to_bytes(4, "big") + content[at + 8 + size :]
    )
    video = decode_video(tmp_path / "a.png", max_side=60, max_candidates=1)
    assert (video.info.width, video.info.height) == (40, 60)


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "I;16"])
def test_other_pixel_formats_become_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PICTURE)
    image = Image.fromarray(PICTURE[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    video = decode_video(tmp_path / "a.png", max_side=60, max_candidates=1)
    assert video.pool.get([0])[0].shape == (1, 40, 60, 3)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_truncated_image_is_bad_media(tmp_path: Path, name: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError) as caught:
        decode_video(path, max_side=60, max_candidates=1)
    assert caught.value.stage in ("open", "decode")


def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.fromarray(PICTURE).save(path)
    content = path.read_bytes()
    header = b"IHDR" + struct.pack(">II", 20_000, 20_000) + content[24:29]  # claims 400 million pixels
    path.write_bytes(content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:])
    with pytest.raises(MediaError) as caught:
        decode_video(path, max_side=60, max_candidates=1)
    assert caught.value.error_class == "DecompressionBombError"
