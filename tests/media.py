"""Real encoded media, made in a test's own folder."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_video(
    path: Path,
    *,
    shot_lengths: Sequence[int] = (12, 12),
    size: tuple[int, int] = (96, 64),
    fps: int = 12,
    seed: int = 0,
    codec: str = "libx264",
) -> Path:
    """A video of width × height = `size` with hard cuts between its shots, each a drifting texture of its own."""
    random = np.random.default_rng(seed)
    width, height = size
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        for length in shot_lengths:
            coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            texture = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
            for i in range(length):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(texture[:, i : i + width]), format="rgb24")
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_image(path: Path, *, size: tuple[int, int] = (96, 64), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path
