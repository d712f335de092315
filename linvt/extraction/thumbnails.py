"""A strip of small pictures for some inputs, made from frames that were kept anyway; `report.html` shows them."""

import io

import numpy as np
from PIL import Image

from linvt.extraction.plan import PlannedInput

INPUTS_PER_SHARD = 2
NUM_SHARDS = 24
MAX_PICTURES = 8
MAX_SIDE_PX = 96
_JPEG_QUALITY = 70


def has_thumbnails(planned: PlannedInput, samples_per_shard: int) -> bool:
    """Whether an input's row carries thumbnails: at the first positions of the first shards.

    The plan alone decides it, through the slot (shard · samples_per_shard + position): which rows carry thumbnails does
    not depend on workers, on crashes, or on what else could be decoded.
    """
    return planned.shard < NUM_SHARDS and planned.slot % samples_per_shard < INPUTS_PER_SHARD


def thumbnail_strip(frames: np.ndarray) -> bytes:
    """A JPEG of at most `MAX_PICTURES` frames side by side, from frames uint8 [T, H, W, 3], T >= 1.

    They are those at the centres of equal parts of the T, in their order, each scaled down to at most `MAX_SIDE_PX` on
    its longer side. Equal frames give equal bytes.
    """
    count = min(MAX_PICTURES, len(frames))
    centres = (2 * np.arange(count) + 1) * len(frames) // (2 * count)
    pictures = [Image.fromarray(frame) for frame in frames[centres]]
    for picture in pictures:
        picture.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    width, height = pictures[0].size
    strip = Image.new("RGB", (count * width, height))
    for i, picture in enumerate(pictures):
        strip.paste(picture, (i * width, 0))
    data = io.BytesIO()
    strip.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()
