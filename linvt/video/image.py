"""Still images (png, jpg, webp) as one-frame videos, through Pillow: it knows EXIF, palettes and CMYK."""

import warnings
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from linvt.video.candidates import CandidatePool
from linvt.video.geometry import Orientation, fit
from linvt.video.media import (
    DETECTOR_HEIGHT,
    DETECTOR_WIDTH,
    NO_LIMITS,
    DecodedVideo,
    MediaError,
    MediaInfo,
    MediaLimits,
)

FORMATS = ("PNG", "JPEG", "WEBP")
_ORIENTATION_TAG = 0x0112


def is_image(head: bytes) -> bool:
    """Whether a file that begins with `head` (16 bytes) is one of `FORMATS`."""
    return head.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A decoded image."""

    image: Image.Image
    """Upright and in RGB, alpha dropped, as image processors load it; of an animation, the first frame."""
    codec: str
    mode: str
    """How the file stores pixels, in Pillow's words."""
    orientation: Orientation
    """What was done to stand it upright."""


def read_picture(file: BinaryIO, *, limits: MediaLimits = NO_LIMITS) -> Picture:
    """Raises MediaError for a broken or truncated image and for one above Pillow's limit on pixels, or ours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)
            limits.check_size(image.width, image.height)
            codec, mode = str(image.format).lower(), image.mode
            orientation = Orientation.of_exif(image.getexif().get(_ORIENTATION_TAG))
            image.load()
    except UnidentifiedImageError as error:
        raise MediaError("open", "UnidentifiedImageError", "begins like an image but has no readable header") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise MediaError("open", "DecompressionBombError", str(error)) from error
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reports broken pixels as OSError without errno; one with errno is the storage's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MediaError("decode", "BrokenImage", str(error)) from error
    image = Image.fromarray(orientation.upright(np.asarray(image.convert("RGB"))))
    return Picture(image=image, codec=codec, mode=mode.lower(), orientation=orientation)


def decode_image(file: BinaryIO, *, max_side: int, limits: MediaLimits = NO_LIMITS) -> DecodedVideo:
    """A `Picture` as a video of one frame. Raises MediaError as `read_picture` does."""
    picture = read_picture(file, limits=limits)
    image = picture.image
    info = MediaInfo(
        kind="image",
        container=picture.codec,
        codec=picture.codec,
        pixel_format=picture.mode,
        width=image.width,
        height=image.height,
        rotation_deg=picture.orientation.rotation_deg,
        num_frames=1,
        duration_s=0.0,
        average_fps=0.0,
        start_s=0.0,
        num_bad_packets=0,
    )
    detector_frame = image.resize((DETECTOR_WIDTH, DETECTOR_HEIGHT), Image.Resampling.BICUBIC)
    picture = image.resize(fit(image.width, image.height, max_side), Image.Resampling.BICUBIC)
    return DecodedVideo(
        info=info,
        detector_frames=np.asarray(detector_frame)[None],
        timestamps_s=np.zeros(1, np.float64),
        pool=CandidatePool([0], [np.asarray(picture)]),
    )
