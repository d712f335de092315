"""decode_video on real encoded media: order, times, geometry, damage, and what counts as bad media."""

import errno
import io
import os
import pickle
import random
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

from linvt.video import DecodedVideo, MediaError, MediaLimits, decode_video, stream_video
from tests.video.make_media import number_of, numbered_frames, write_audio, write_video

UNEVEN_MS = [0, 40, 50, 200, 210, 220, 900, 1000, 1001, 1002, 1500, 1600]


def overwrite(path: Path, box: bytes, offset: int, content: bytes) -> None:
    """Puts `content` into the only box of that kind, `offset` bytes behind its name."""
    before, after = path.read_bytes().split(box)
    path.write_bytes(before + box + after[:offset] + content + after[offset + len(content) :])


def decode_all(source) -> DecodedVideo:
    return decode_video(source, max_side=64, max_candidates=64)


def numbers(video: DecodedVideo) -> list[int]:
    frames, indices = video.pool.get(range(video.info.num_frames))
    assert indices.tolist() == list(range(video.info.num_frames))
    return [number_of(frame) for frame in frames]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_b_frames_and_uneven_times_come_in_presentation_order_from_pts(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, numbered_frames(12), pts_ms=UNEVEN_MS)
    with av.open(str(path)) as container:
        assert any(packet.pts != packet.dts for packet in container.demux(video=0) if packet.size), "no B-frames"
    video = decode_all(path)
    assert numbers(video) == list(range(12))
    np.testing.assert_allclose(video.timestamps_s, np.array(UNEVEN_MS) / 1000, atol=1e-9)
    assert video.info.num_frames == 12
    assert 1.6 < video.info.duration_s < 1.75
    assert video.info.average_fps == pytest.approx(12 / video.info.duration_s)
    assert (video.info.codec, video.info.pixel_format, video.info.kind) == ("h264", "yuv420p", "video")
    brightness = video.detector_frames[:, 13, 24].mean(axis=1)
    assert (np.diff(brightness) > 2).all()  # the shot detector sees every frame too, in the same order


def test_times_count_from_the_start_of_the_presentation(tmp_path: Path) -> None:
    path = write_video(tmp_path / "late.mkv", numbered_frames(12), pts_ms=[5000 + pts for pts in UNEVEN_MS])
    video = decode_all(path)
    np.testing.assert_allclose(video.timestamps_s, np.array(UNEVEN_MS) / 1000, atol=1e-9)
    assert video.info.start_s == pytest.approx(5.0)


def test_a_stream_without_pts_gets_times_at_its_nominal_rate(tmp_path: Path) -> None:
    video = decode_all(write_video(tmp_path / "raw.h264", numbered_frames(12), container="h264"))
    assert numbers(video) == list(range(12))
    np.testing.assert_allclose(video.timestamps_s, np.arange(12) / 25, atol=1e-6)


@pytest.mark.parametrize(
    ("rotation", "rotation_deg", "upright"),
    [
        ((90, False, False), 90, lambda picture: np.rot90(picture)),
        ((180, False, False), 180, lambda picture: np.rot90(picture, 2)),
        ((-90, False, False), -90, lambda picture: np.rot90(picture, -1)),
        ((0, True, False), 180, lambda picture: picture[:, ::-1]),
        ((0, False, True), 0, lambda picture: picture[::-1]),
    ],
)
def test_display_matrix_is_applied(tmp_path: Path, rotation, rotation_deg: int, upright) -> None:
    frames = numbered_frames(3)
    path = write_video(tmp_path / "turned.mp4", frames, rotation=rotation)
    video = decode_all(path)
    expected = upright(frames[0])
    assert (video.info.height, video.info.width) == expected.shape[:2]
    assert video.info.rotation_deg == rotation_deg
    picture = video.pool.get([0])[0][0]
    assert picture.shape == expected.shape
    assert np.abs(picture.astype(int) - expected).mean() < 4
    small = np.asarray(Image.fromarray(np.ascontiguousarray(expected)).resize((48, 27)))
    assert np.abs(video.detector_frames[0].astype(int) - small).mean() < 8


def test_a_mirrored_quarter_turn_is_turned_first(tmp_path: Path) -> None:
    """As libavutil's `av_display_matrix_flip` has it: the flip is of the shown picture."""
    frames = numbered_frames(1)
    video = decode_all(write_video(tmp_path / "turned.mp4", frames, rotation=(90, True, False)))
    assert np.abs(video.pool.get([0])[0][0].astype(int) - np.rot90(frames[0])[:, ::-1]).mean() < 4


def test_motion_jpeg_with_exif(tmp_path: Path) -> None:
    """A camera's frames carry EXIF, whose orientation FFmpeg turns into a display matrix."""
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = numbered_frames(3)
    with av.open(str(tmp_path / "camera.avi"), "w") as output:
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for number, frame in enumerate(frames):
            jpeg = io.BytesIO()
            Image.fromarray(frame).save(jpeg, "JPEG", exif=exif, quality=95)
            packet = av.Packet(jpeg.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            output.mux(packet)
    video = decode_all(tmp_path / "camera.avi")
    assert (video.info.width, video.info.height, video.info.rotation_deg) == (48, 64, -90)
    assert np.abs(video.pool.get([0])[0][0].astype(int) - np.rot90(frames[0], -1)).mean() < 4
    assert numbers(video) == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "aspect", "size"), [("a.mp4", Fraction(2), (128, 48)), ("a.mkv", Fraction(1, 2), (32, 48))]
)
def test_sample_aspect_ratio_is_applied(tmp_path: Path, name: str, aspect: Fraction, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / name, numbered_frames(2), aspect=aspect)
    video = decode_video(path, max_side=1000, max_candidates=4)
    assert (video.info.width, video.info.height) == size
    assert video.pool.get([0])[0].shape == (1, size[1], size[0], 3)


@pytest.mark.parametrize(("across", "down"), [(2**31 - 1, 1), (1, 65535), (17, 1)])
def test_an_aspect_that_nothing_has_is_not_believed(tmp_path: Path, across: int, down: int) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(2), aspect=Fraction(2))
    overwrite(path, b"pasp", 0, struct.pack(">II", across, down))
    assert (decode_all(path).info.width, decode_all(path).info.height) == (64, 48)


def test_a_display_matrix_of_zeros_turns_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(2))
    overwrite(path, b"tkhd", 44, bytes(36))
    video = decode_all(path)
    assert (video.info.width, video.info.height, video.info.rotation_deg) == (64, 48, 0)
    assert numbers(video) == [0, 1]


def test_aspect_and_rotation_together(tmp_path: Path) -> None:
    """The aspect stretches coded pixels sideways, so after a quarter turn the picture is taller."""
    path = write_video(tmp_path / "a.mp4", numbered_frames(2), aspect=Fraction(2), rotation=(90, False, False))
    assert (decode_all(path).info.width, decode_all(path).info.height) == (48, 128)


@pytest.mark.parametrize(("max_side", "shape"), [(32, (24, 32)), (64, (48, 64)), (1000, (48, 64)), (1, (1, 1))])
def test_candidates_keep_aspect_and_are_not_enlarged(tmp_path: Path, max_side: int, shape: tuple[int, int]) -> None:
    path = write_video(tmp_path / "a.mp4", numbered_frames(2))
    video = decode_video(path, max_side=max_side, max_candidates=2)
    assert video.pool.get([0])[0].shape[1:3] == shape
    assert video.detector_frames.shape == (2, 27, 48, 3)


def test_an_attached_picture_is_no_video(tmp_path: Path) -> None:
    assert numbers(decode_all(write_video(tmp_path / "film.mp4", numbered_frames(5), cover=True))) == list(range(5))
    path = write_audio(tmp_path / "song.mp4", cover=True)
    with av.open(str(path)) as container:
        assert [stream.disposition for stream in container.streams.video] == [Disposition.attached_pic]
    with pytest.raises(MediaError, match=r"it has: \['attached picture', 'audio'\]"):
        decode_all(path)


def test_the_pool_is_bounded_and_holds_the_frames_it_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", numbered_frames(50))
    video = decode_video(path, max_side=64, max_candidates=8)
    assert len(video.pool) <= 8
    frames, indices = video.pool.get(range(50))
    assert [number_of(frame) for frame in frames] == indices.tolist() == video.pool.indices.tolist()
    assert len(video.detector_frames) == len(video.timestamps_s) == 50


def test_same_result_from_path_file_and_name(tmp_path: Path) -> None:
    """The bytes decide, wherever they lie, whatever they are called, and at whatever position the file stands."""
    path = write_video(tmp_path / "clip.mp4", numbered_frames(6))
    misnamed = tmp_path / "clip.png"
    misnamed.write_bytes(path.read_bytes())
    file = io.BytesIO(path.read_bytes())
    file.seek(100)
    expected = decode_all(path)
    for source in (str(path), misnamed, file):
        video = decode_all(source)
        assert video.info == expected.info
        for ours, theirs in (
            (video.detector_frames, expected.detector_frames),
            (video.timestamps_s, expected.timestamps_s),
        ):
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(video.pool.get(range(6))[0], expected.pool.get(range(6))[0])


def test_threads_do_not_change_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", numbered_frames(30))
    one, four = (decode_video(path, max_side=64, max_candidates=30, num_threads=threads) for threads in (1, 4))
    np.testing.assert_array_equal(one.pool.get(range(30))[0], four.pool.get(range(30))[0])


def damage(path: Path, packets_to_break: list[int]) -> None:
    """Overwrites the beginning of some packets of a PNG-coded video, which its decoder then refuses."""
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for packet in packets_to_break:
        position = positions[packet]
        assert position is not None
        content[position : position + 8] = b"\0" * 8
    path.write_bytes(content)


def test_damaged_packets_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mov", numbered_frames(12), codec="png", pixel_format="rgb24")
    damage(path, [0, 4, 5])
    video = decode_all(path)
    kept = [1, 2, 3, 6, 7, 8, 9, 10, 11]
    assert numbers(video) == kept
    assert video.info.num_bad_packets == 3
    np.testing.assert_allclose(video.timestamps_s, np.array(kept) / 25)  # later frames keep their times


@pytest.mark.parametrize(("broken", "error_class"), [(range(12), "NoFrames"), (range(1, 9), "MostlyCorrupt")])
def test_a_mostly_damaged_video_is_bad_media(tmp_path: Path, broken: range, error_class: str) -> None:
    path = write_video(tmp_path / "clip.mov", numbered_frames(12), codec="png", pixel_format="rgb24")
    damage(path, list(broken))
    with pytest.raises(MediaError) as caught:
        decode_all(path)
    assert (caught.value.stage, caught.value.error_class) == ("decode", error_class)
    assert "InvalidDataError" in caught.value.message


def test_a_file_cut_short_gives_the_frames_it_still_has(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", numbered_frames(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    video = decode_all(path)
    count = video.info.num_frames
    assert 10 < count < 40
    assert numbers(video)[: count - 3] == list(range(count - 3))
    np.testing.assert_allclose(video.timestamps_s[: count - 3], np.arange(count - 3) / 25)


def without_index(path: Path) -> None:
    write_video(path, numbered_frames(12))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])  # the index of an mp4 is written last


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.ts"])
def test_whatever_the_bytes_the_result_is_whole_or_an_error(tmp_path: Path, name: str, seed: int) -> None:
    path = write_video(tmp_path / name, numbered_frames(12), codec="mpeg4" if name == "clip.avi" else "libx264")
    rng = random.Random(f"{name} {seed}")
    content = bytearray(path.read_bytes())
    for _ in range(rng.choice([1, 3, 10, 40])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    if seed % 4 == 0:
        del content[rng.randrange(len(content)) :]
    try:
        video = decode_video(io.BytesIO(content), max_side=32, max_candidates=5)
    except MediaError:
        return
    count = video.info.num_frames
    assert 1 <= count == len(video.timestamps_s) == len(video.detector_frames)
    assert video.timestamps_s[0] >= 0
    assert (np.diff(np.append(video.timestamps_s, video.info.duration_s)) > 0).all()
    assert 1 <= len(video.pool) <= 5
    assert video.pool.indices[-1] < count


BAD_MEDIA = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "open", "EmptyFile"),
    "noise.mp4": (lambda path: path.write_bytes(random.Random(0).randbytes(5000)), "open", "InvalidDataError"),
    "text.txt": (lambda path: path.write_text("no video\n" * 200), "open", "InvalidDataError"),
    "page.mp4": (lambda path: path.write_text("<html><body>404</body></html>"), "open", "InvalidDataError"),
    "no_index.mp4": (without_index, "open", "InvalidDataError"),
    "sound.wav": (write_audio, "open", "NoVideoStream"),
    "head_only.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "open", "UnidentifiedImageError"),
}


@pytest.mark.parametrize("name", BAD_MEDIA)
def test_bad_media(tmp_path: Path, name: str) -> None:
    make, stage, error_class = BAD_MEDIA[name]
    make(tmp_path / name)
    with pytest.raises(MediaError) as caught:
        decode_all(tmp_path / name)
    assert (caught.value.stage, caught.value.error_class) == (stage, error_class)
    assert caught.value.message
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.stage, copy.error_class, copy.message, str(copy)) == (
        *caught.value.args,
        str(caught.value),
    )


PLAYLISTS = [
    "ffconcat version 1.0\nfile clip.ts\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nclip.ts\n#EXT-X-ENDLIST\n",
]


@pytest.mark.parametrize("playlist", PLAYLISTS)
def test_a_playlist_cannot_open_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, playlist: str) -> None:
    write_video(tmp_path / "clip.ts", numbered_frames(5), container="mpegts")
    path = tmp_path / "list.m3u8"
    path.write_text(playlist)
    monkeypatch.chdir(tmp_path)
    with path.open("rb") as file, av.open(file) as container:  # FFmpeg by itself does open them
        assert len(list(container.decode(video=0))) == 5
    with pytest.raises(MediaError):
        decode_all(path)


def test_a_position_that_no_file_reaches_is_no_storage_fault(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.asf", numbered_frames(12), codec="wmv2", container="asf")
    content = bytearray(path.read_bytes())
    at = content.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))  # ASF_File_Properties_Object
    content[at + 16 : at + 24] = struct.pack("<Q", 2**62)  # its size
    path.write_bytes(content)
    with pytest.raises(OSError, match="Invalid argument"), path.open("rb") as file:
        file.seek(2**62)
    for source in (path, io.BytesIO(content)):
        assert decode_all(source).info.num_frames == 12


class FailingStorage(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 2000:
            raise OSError(errno.EIO, "the disk is gone")
        return super().read(min(size, 500) if size and size > 0 else 500)


def test_storage_faults_are_not_bad_media(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mkv", numbered_frames(50, width=320, height=240))
    assert path.stat().st_size > 3000
    with pytest.raises(OSError, match="the disk is gone") as caught:
        decode_all(FailingStorage(path.read_bytes()))
    assert caught.value.errno == errno.EIO
    with pytest.raises(FileNotFoundError):
        decode_all(tmp_path / "absent.mp4")


def test_nothing_stays_open(tmp_path: Path) -> None:
    good = write_video(tmp_path / "clip.mp4", numbered_frames(5))
    sound = write_audio(tmp_path / "sound.wav")
    decode_all(good)
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        decode_all(good)
        with pytest.raises(MediaError):
            decode_all(sound)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("arguments", [{"max_side": 0}, {"max_candidates": 0}, {"num_threads": 0}])
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be at least 1, got 0"):
        decode_video(tmp_path / "any.mp4", **{"max_side": 8, "max_candidates": 8, **arguments})


def test_limits_are_judged_by_the_header_and_by_every_frame(tmp_path):
    clip = write_video(tmp_path / "clip.mp4", numbered_frames(12))
    for limits, message in (
        (MediaLimits(max_frame_pixels=64 * 48 - 1), "64 × 48 pixels"),
        (MediaLimits(max_duration_s=0.1), "long; at most"),
    ):
        with pytest.raises(MediaError, match=message) as raised:
            next(stream_video(clip, max_side=64, max_candidates=8, limits=limits))
        assert raised.value.error_class == "BeyondLimits"
    overwrite(clip, b"mvhd", 20, bytes(4))  # the container says that it lasts 0 s
    overwrite(clip, b"mdhd", 20, bytes(4))
    with pytest.raises(MediaError, match="long; at most"):
        list(stream_video(clip, max_side=64, max_candidates=8, limits=MediaLimits(max_duration_s=0.1)))


def test_frames_that_grow_beyond_the_limit_on_the_way_are_never_decoded(tmp_path):
    """One stream, of small frames and then large ones; its header tells of the small ones."""
    grown, pts = tmp_path / "grown.ts", 0
    with av.open(str(grown), "w") as output:
        stream = None
        for width in (64, 512):
            part = write_video(tmp_path / f"{width}.ts", numbered_frames(5, width=width, height=width))
            with av.open(str(part)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size:
                        packet.stream, packet.pts, packet.dts, pts = stream, pts, pts, pts + 9000
                        output.mux(packet)
    for max_frame_pixels, count in ((512 * 512, 10), (512 * 512 - 1, 5)):
        limits = MediaLimits(max_frame_pixels=max_frame_pixels)
        chunks = list(stream_video(grown, max_side=64, max_candidates=8, limits=limits))
        assert sum(map(len, chunks)) == count
