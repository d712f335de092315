"""Whatever people call a video: inputs that are broken, odd or oddly named, and what must become of each."""

import gzip
import io
import itertools
import json
import os
import random
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from tests.video.make_media import numbered_frames, write_audio, write_video

Row = tuple[str, bytes, "Expected"]


@dataclass(frozen=True, slots=True)
class Expected:
    """How an input must end: committed as a `kind`, or quarantined for an `error_class`."""

    kind: str | None = None
    num_frames: int | None = None
    """Decoded frames; None where that is up to the decoder, and at least one."""
    num_bad_packets: int = 0
    size: tuple[int, int] | None = None
    """Display width and height, where they are the point."""
    stage: str | None = None
    error_class: str | None = None


def video(num_frames: int | None = 12, num_bad_packets: int = 0, size: tuple[int, int] | None = None) -> Expected:
    return Expected("video", num_frames, num_bad_packets, size)


def bad(stage: str, error_class: str) -> Expected:
    return Expected(stage=stage, error_class=error_class)


IMAGE = Expected("image", 1)
NOT_MEDIA = bad("open", "InvalidDataError")
NO_FRAMES = bad("decode", "NoFrames")
NO_FILE = bad("fetch", "FileNotFoundError")
# Names that are no text, as JSON spells them, and the ids that stand for them.
_ESCAPED = {"byte \udcff.mp4": r"byte \xff.mp4", "half \ud83d.mp4": r"half \ud83d.mp4"}


def write_hostile_corpus(folder: Path) -> dict[str, Expected]:
    """Writes the files and `corpus.jsonl`, which names each of them; returns what must become of every video id."""
    groups = (_not_media, _cut, _misnamed, _streams, _times, _pictures, _claims, _damage, _named)
    expected: dict[str, Expected] = {}
    for name, content, outcome in itertools.chain.from_iterable(group() for group in groups):
        assert name not in expected, name
        (folder / name).write_bytes(content)
        expected[name] = outcome
    expected |= _special(folder)
    with (folder / "corpus.jsonl").open("w") as file:
        file.writelines(json.dumps({"media": name}) + "\n" for name in expected)
    return {_ESCAPED.get(name, name): outcome for name, outcome in expected.items()}


def _not_media() -> Iterator[Row]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("film.mp4", _video("mp4"))
    yield "empty.mp4", b"", bad("open", "EmptyFile")
    yield "byte.mp4", b"\0", NOT_MEDIA
    yield "zeros.mp4", bytes(1 << 20), NOT_MEDIA
    yield "noise.mp4", random.Random(0).randbytes(100_000), NOT_MEDIA
    yield "text.mp4", b"no video at all\n" * 100, NOT_MEDIA
    yield "page.mp4", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", NOT_MEDIA
    yield "paper.mp4", b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n", NOT_MEDIA
    yield "archive.mp4", archive.getvalue(), NOT_MEDIA
    yield "packed.mp4", gzip.compress(_video("mp4"), mtime=0), NOT_MEDIA
    yield "subtitles.mp4", b"1\n00:00:00,000 --> 00:00:01,000\nwords\n\n" * 9, bad("open", "NoVideoStream")
    yield "drawing.mp4", b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', bad("open", "DecoderNotFoundError")
    # These would make a decoder open another file or address.
    yield "list.m3u8.mp4", b"#EXTM3U\n#EXTINF:2,\ngood.mp4\n#EXT-X-ENDLIST\n", bad("open", "Playlist")
    yield "list.ffconcat.mp4", b"ffconcat version 1.0\nfile good.mp4\n", bad("open", "Playlist")
    yield "session.mp4", b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nm=video 9 RTP/AVP 96\n", NOT_MEDIA


def _cut() -> Iterator[Row]:
    """Downloads that ended early."""
    mp4, mkv = _video("mp4"), _video("mkv", 40)
    yield "header_cut.mp4", mp4[:12], NOT_MEDIA
    yield "moov_missing.mp4", mp4[: mp4.index(b"moov")], NOT_MEDIA
    yield "moov_cut.mp4", mp4[: mp4.index(b"mdia")], bad("open", "NoVideoStream")
    yield "tables_cut.mp4", mp4[: mp4.index(b"stsz")], NOT_MEDIA
    # Exactly the whole pictures remain.
    fast = _video("mov", codec="rawvideo", pixel_format="rgb24", container_options={"movflags": "faststart"})
    for percent in (5, 25, 50, 90):
        end = len(fast) * percent // 100
        count = sum(stop <= end for _, stop in _packets(fast))
        yield f"fast_{percent}.mov", fast[:end], video(count, 1) if count else NO_FRAMES
    yield "header_cut.mkv", mkv[:20], NOT_MEDIA
    yield "no_packet.mkv", mkv[: mkv.index(b"\x1f\x43\xb6\x75")], bad("open", "EOFError")
    yield "cluster_cut.mkv", mkv[: len(mkv) * 2 // 3], video(None)
    for kind in ("png", "jpeg", "webp"):
        yield f"cut.{kind}", _image(kind)[:-40], bad("decode", "BrokenImage")
    yield "cut.gif", _gif()[:-40], video(None)
    yield "signature.png", b"\x89PNG\r\n\x1a\n", bad("open", "UnidentifiedImageError")


def _misnamed() -> Iterator[Row]:
    yield "mkv.mp4", _video("mkv"), video()
    yield "mp4.jpg", _video("mp4"), video()
    yield "ts.avi", _video("ts"), video()
    for kind in ("png", "jpeg", "webp"):
        yield f"{kind}.mp4", _image(kind), IMAGE
    yield "gif.mp4", _gif(), video()
    yield "wave.mp4", _encoded(write_audio, "wav"), bad("open", "NoVideoStream")


def _streams() -> Iterator[Row]:
    yield "sound.m4a", _encoded(write_audio, "mp4"), bad("open", "NoVideoStream")
    yield "sound_and_cover.m4a", _encoded(write_audio, "mp4", cover=True), bad("open", "NoVideoStream")
    yield "film_and_cover.mp4", _video("mp4", cover=True), video()
    yield "two_films.mkv", _film("mkv", 5, 9), video(5)
    yield "codec_unknown.mp4", _video("mp4").replace(b"avc1", b"zzzz"), bad("open", "DecoderNotFoundError")
    yield "codec_swapped.mp4", _video("mp4").replace(b"avc1", b"mp4v"), NO_FRAMES


def _times() -> Iterator[Row]:
    ts = _video("ts", 40)
    yield "no_keyframe.mp4", _without_first_packet(_video("mp4")), NO_FRAMES
    yield "no_times.h264", _video("h264", container="h264"), video()
    yield "spliced.ts", ts + ts, video(80)
    yield "backwards.mkv", _rearranged(_jpegs(range(0, 480, 40)), range(440, -1, -40)), video()
    yield "repeated.mkv", _jpegs([40 * (i // 3) for i in range(12)]), video()
    yield "all_at_once.mkv", _jpegs([0] * 12), video()
    yield "late.mkv", _jpegs([2**60 + 40 * i for i in range(12)]), video()
    yield "early.mkv", _jpegs([40 * i - 10**15 for i in range(12)]), video()
    yield "leap.mkv", _jpegs([40 * i + (2**61 if i >= 6 else 0) for i in range(12)]), video()
    yield "uneven.mp4", _video("mp4", pts_ms=[0, 1, 2, 40, 900, 901, 5000, 5001, 5002, 9000, 60_000, 60_001]), video()
    yield "one.mp4", _video("mp4", 1), video(1)
    yield "two.mp4", _video("mp4", 2), video(2)
    # Every one of its 12,000 frames stays for a day, says its header.
    slow = _film("avi", 12_000, codec="rawvideo", size=(2, 2), pixel_format="bgr24")
    slow = _put(slow, slow.index(b"strh") + 28, struct.pack("<II", 86_400, 1))
    yield "ages.avi", slow, bad("decode", "AbsurdTimestamps")


def _pictures() -> Iterator[Row]:
    yield "turned.mp4", _video("mp4", rotation=(90, False, False)), video(size=(48, 64))
    yield "mirrored.mp4", _video("mp4", rotation=(0, True, False)), video()
    yield "wide_pixels.mp4", _video("mp4", aspect=Fraction(2)), video(size=(128, 48))
    for width, height in ((1, 1), (3, 5), (63, 47), (64, 3), (1, 999)):
        yield f"{width}x{height}.mp4", _film("mp4", 3, size=(width, height)), video(3, size=(width, height))
    yield "pixel.png", _png(1, 1), IMAGE
    for name, codec, pixel_format in (
        ("alpha.mov", "qtrle", "argb"),
        ("grey.mkv", "ffv1", "gray"),
        ("10_bit.mp4", "libx264", "yuv420p10le"),
        ("12_bit.mkv", "ffv1", "yuv422p12le"),
        ("16_bit_alpha.mkv", "ffv1", "rgba64le"),
        ("full_range.mp4", "libx264", "yuvj444p"),
    ):
        yield name, _film(name[-3:], 5, codec=codec, pixel_format=pixel_format), video(5)
    yield "interlaced.mpg", _film("mpg", 12, codec="mpeg2video", options={"flags": "+ildct+ilme"}), video()
    yield "growing.mov", _pngs([_png()] * 3 + [_png(96, 32)] * 3), video(6, size=(64, 48))
    small, large = (_video("h264", 12, size=size, container="h264") for size in ((64, 48), (96, 64)))
    yield "growing.h264", small + large, video(24, size=(64, 48))


def _claims() -> Iterator[Row]:
    """Headers that promise what the file does not hold, or nobody could."""
    mp4, avi = _video("mp4"), _film("avi", 12)
    yield "million_frames.mp4", _put(mp4, _in_box(mp4, b"stts", 8), struct.pack(">I", 10**6)), video()
    yield "million_entries.mp4", _put(mp4, _in_box(mp4, b"stts", 4), struct.pack(">I", 10**6)), bad("open", "EOFError")
    yield "million_frames.avi", _put(avi, avi.index(b"avih") + 24, struct.pack("<I", 10**6)), video()
    timeless = mp4
    for box, offset in ((b"mvhd", 16), (b"mdhd", 16), (b"tkhd", 20)):
        timeless = _put(timeless, _in_box(timeless, box, offset), bytes(4))
    yield "no_duration.mp4", timeless, video()
    mkv = _video("mkv")
    yield "no_duration.mkv", _put(mkv, mkv.index(b"\x44\x89\x88") + 3, struct.pack(">d", float("nan"))), video()
    yield "eternal.mkv", _put(mkv, mkv.index(b"\x44\x89\x88") + 3, struct.pack(">d", 1e300)), video()
    yield "matrix_of_zeros.mp4", _put(mp4, _in_box(mp4, b"tkhd", 40), bytes(36)), video(size=(64, 48))
    wide = _video("mp4", aspect=Fraction(2))
    yield "aspect.mp4", _put(wide, _in_box(wide, b"pasp"), struct.pack(">II", 2**31 - 1, 1)), video(size=(64, 48))
    asf = _film("asf", 12, codec="wmv2")
    properties = asf.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    yield "exabytes.asf", _put(asf, properties + 16, struct.pack("<Q", 2**62)), video()
    # Pictures of 268 and 256 million pixels, by their headers: FFmpeg refuses the first and tries the second.
    huge, vast = _png(16_384, 16_384), _png(16_000, 16_000)
    yield "huge.png", huge, bad("open", "DecompressionBombError")
    yield "large.png", _png(12_000, 12_000), bad("open", "DecompressionBombError")
    yield "huge.mov", _pngs([huge] * 3), NO_FRAMES
    yield "huge_jpeg.mkv", _jpegs([0, 40, 80], _sized(_image("jpeg"), 16_384)), NO_FRAMES
    yield "huge_in_the_middle.mov", _pngs([_png()] * 4 + [huge] + [_png()] * 4), video(8, 1)
    yield "vast.mov", _pngs([vast] * 3), bad("decode", "DecoderOutOfMemory")
    yield "vast_in_the_middle.mov", _pngs([_png()] * 4 + [vast]), bad("decode", "DecoderOutOfMemory")


def _damage() -> Iterator[Row]:
    mp4, mov = _video("mp4"), _pngs([_png()] * 12)
    fast = _video("mp4", container_options={"movflags": "faststart"})
    noise = random.Random(1).randbytes(5000)
    for name, broken, outcome in (
        ("first_broken.mov", [0], video(11, 1)),
        ("middle_broken.mov", [5, 6, 7], video(9, 3)),
        ("mostly_broken.mov", range(1, 9), bad("decode", "MostlyCorrupt")),
        ("all_broken.mov", range(12), NO_FRAMES),
    ):
        content = mov
        for number in broken:
            content = _put(content, _packets(mov)[number][0], bytes(8))
        yield name, content, outcome
    start, end = _packets(mp4)[2][0], _packets(mp4)[9][1]
    yield "scratched.mp4", _put(mp4, (start + end) // 2, random.Random(2).randbytes(40)), video(None)
    yield "noise_for_moov.mp4", _put(mp4, _in_box(mp4, b"moov"), noise), bad("open", "NoVideoStream")
    yield "noise_behind.mp4", mp4 + noise, video()
    yield "noise_before.mp4", noise + mp4, NOT_MEDIA
    for box, outcome in ((b"ftyp", NOT_MEDIA), (b"mdat", NOT_MEDIA), (b"moov", video()), (b"stts", NO_FRAMES)):
        yield f"{box.decode()}_without_end.mp4", _put(mp4, _in_box(mp4, box) - 8, b"\xff" * 4), outcome
    yield "last_mdat_without_end.mp4", _put(fast, _in_box(fast, b"mdat") - 8, b"\xff" * 4), video()


def _named() -> Iterator[Row]:
    """Names that a shell, a URL, a list or a screen could trip over. Two files of equal content are two inputs."""
    good = _video("mp4")
    for name in (
        "good.mp4",
        "twin.mp4",
        " spaces  in it .mp4",
        "..dots...mp4",
        "no_extension",
        "new\nline\r\n.mp4",
        "line\u2028separator.mp4",
        "tab\t.mp4",
        'it\'s "quoted" `twice`.mp4',
        "percent%20%2F%s.mp4",
        "hash#and?question=mark&.mp4",
        "star*[a-z]{b,c}.mp4",
        "two::colons:.mp4",
        "back\\slash.mp4",
        "$HOME ~.mp4",
        "<b onclick=x>bold.mp4",
        "-dash.mp4",
        ".hidden.mp4",
        "über 日本語 العربية.mp4",
        "u\u0308ber.mp4",
        "turned \u202e4pm.mp4",
        "🎬.mp4",
        f"{'long' * 62}.mp4",
    ):
        yield name, good, video()


def _special(folder: Path) -> dict[str, Expected]:
    """What is no plain file."""
    good = _video("mp4")
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "dangling.mp4").symlink_to("nowhere.mp4")
    (folder / "link.mp4").symlink_to("good.mp4")
    (folder / "endless.mp4").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "folder.mp4").mkdir()
    (folder / "folder.mp4/inside.mp4").write_bytes(good)
    (folder / "byte \udcff.mp4").write_bytes(good)
    outcomes = {
        "loop.mp4": bad("fetch", "LinkLoopError"),
        "dangling.mp4": NO_FILE,
        "link.mp4": video(),
        "endless.mp4": bad("fetch", "NotARegularFileError"),
        "pipe.mp4": bad("fetch", "NotARegularFileError"),
        "folder.mp4": bad("fetch", "IsADirectoryError"),
        "folder.mp4/inside.mp4": video(),
        "good.mp4/inside.mp4": bad("fetch", "NotADirectoryError"),
        "missing.mp4": NO_FILE,
        f"{'long' * 64}.mp4": bad("fetch", "NameTooLongError"),
        "nul\0.mp4": NO_FILE,
        **dict.fromkeys(_ESCAPED, NO_FILE),
    }
    if os.geteuid() != 0:
        (folder / "locked.mp4").write_bytes(good)
        (folder / "locked.mp4").chmod(0)
        outcomes["locked.mp4"] = bad("fetch", "PermissionError")
    return outcomes


# -- encoders and editors ----------------------------------------------------------------------------------------------


def _encoded(write: Callable[..., Any], extension: str, *arguments: Any, **options: Any) -> bytes:
    """What `write` writes to a path of that extension."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"media.{extension}")
        write(path, *arguments, **options)
        return path.read_bytes()


def _video(extension: str, count: int = 12, *, size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    return _encoded(write_video, extension, numbered_frames(count, width=size[0], height=size[1]), **options)


def _film(
    extension: str,
    *counts: int,
    codec: str = "mpeg4",
    pixel_format: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
) -> bytes:
    """One stream for each of `counts`, with so many frames, 25 a second."""

    def write(path: Path) -> None:
        picture = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 99, np.uint8), format="rgb24")
        frame = picture.reformat(format=pixel_format)
        with av.open(str(path), "w") as output:
            streams: list[Any] = [output.add_stream(codec, rate=25, options=options or {}) for _ in counts]
            for stream in streams:
                stream.width, stream.height = size
                stream.pix_fmt = pixel_format
            for stream, count in zip(streams, counts):
                for number in range(count):
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                    output.mux(stream.encode(frame))
                output.mux(stream.encode(None))

    return _encoded(write, extension)


def _packed(extension: str, codec: str, pixel_format: str, pictures: Sequence[bytes], at_ms: Sequence[int]) -> bytes:
    """A stream of 64x48 whose packets are `pictures`, whatever they are."""

    def write(path: Path) -> None:
        with av.open(str(path), "w") as output:
            stream: Any = output.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
            for picture, time_ms in zip(pictures, at_ms):
                packet = av.Packet(picture)
                packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
                packet.pts = packet.dts = time_ms
                output.mux(packet)

    return _encoded(write, extension)


def _pngs(pictures: Sequence[bytes]) -> bytes:
    return _packed("mov", "png", "rgb24", pictures, range(0, 40 * len(pictures), 40))


def _jpegs(at_ms: Sequence[int], picture: bytes | None = None) -> bytes:
    return _packed("mkv", "mjpeg", "yuvj420p", [picture or _image("jpeg")] * len(at_ms), at_ms)


def _rearranged(mkv: bytes, at_ms: Sequence[int]) -> bytes:
    """Matroska of JPEGs at other times, also those that a muxer refuses to write."""
    at = 0
    for time_ms in at_ms:
        at = mkv.index(b"\xff\xd8\xff", at + 1)
        mkv = _put(mkv, at - 3, struct.pack(">h", time_ms))  # a block begins: track, time, flags
    return mkv


def _without_first_packet(content: bytes) -> bytes:
    def write(path: Path) -> None:
        with av.open(io.BytesIO(content), "r") as source, av.open(str(path), "w") as output:
            stream = output.add_stream_from_template(source.streams.video[0])
            for packet in list(source.demux(video=0))[1:-1]:
                packet.stream = stream
                output.mux(packet)

    return _encoded(write, "mp4")


def _packets(content: bytes) -> list[tuple[int, int]]:
    """Where the packets of the first stream lie: [start, end)."""
    with av.open(io.BytesIO(content), "r") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    return [(packet.pos, packet.pos + packet.size) for packet in packets if packet.pos is not None]


def _put(content: bytes, at: int, new: bytes) -> bytes:
    return content[:at] + new + content[at + len(new) :]


def _in_box(content: bytes, box: bytes, offset: int = 0) -> int:
    """Where the first MP4 box of that name has its content, and so many bytes further."""
    return content.index(box) + len(box) + offset


def _image(kind: str) -> bytes:
    pixels, file = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def _gif() -> bytes:
    frames, file = [Image.fromarray(frame) for frame in numbered_frames(12)], io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=40)
    return file.getvalue()


def _png(width: int = 64, height: int = 48) -> bytes:
    """Black; of high ones only the first rows are there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes((3 * width + 1) * min(height, 48)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def _sized(jpeg: bytes, side: int) -> bytes:
    """A JPEG whose header claims to be `side` pixels wide and high."""
    return _put(jpeg, jpeg.index(b"\xff\xc0") + 5, struct.pack(">HH", side, side))
