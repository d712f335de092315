"""From coded to displayed pixels: sample aspect ratio, the display matrix's turns and mirrors, the encoder's size."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

# Bit-exact: the same pixels whatever vector instructions the processor has.
DETECTOR_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
"""What `ffmpeg -s 48x27 -pix_fmt rgb24` does, which TransNetV2's frames were made with."""
PICTURE_SCALER = DETECTOR_SCALER | Interpolation.FULL_CHR_H_INT
"""Rounds colours right; without the last flag they come out 1 to 2 levels too dark (of 255, measured)."""

_MAX_SAMPLE_ASPECT = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Orientation:
    """One of the eight ways to stand a picture upright: transpose first, then mirror."""

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False
    rotation_deg: int = 0
    """The counterclockwise turn in it, as ffprobe gives `rotation` (with a mirror, only a hint)."""

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """From the frame's display matrix; other angles than quarter turns go to the nearest one."""
        rotation_deg = round(frame.rotation / 90) * 90
        if rotation_deg == -180:
            rotation_deg = 180
        elif rotation_deg not in _QUARTER_TURNS:
            rotation_deg = 0  # A matrix of zeros, as careless muxers write it, has no angle; PyAV gives a wild number.
        try:
            matrix = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:
            # PyAV 18 refuses side data of kinds newer than itself (EXIF in MJPEG); the turn is all that can be had.
            return cls(**_QUARTER_TURNS[rotation_deg], rotation_deg=rotation_deg)
        if matrix is None:
            return cls()
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        # (x, y) is shown at (a·x + c·y, b·x + d·y), up to a shift.
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transpose=True, mirror_x=c < 0, mirror_y=b < 0, rotation_deg=rotation_deg)
        return cls(mirror_x=a < 0, mirror_y=d < 0, rotation_deg=rotation_deg)

    @classmethod
    def of_exif(cls, tag: object) -> "Orientation":
        """From the value of EXIF's orientation tag; anything but 2 … 8 means upright."""
        return _EXIF_ORIENTATIONS.get(tag, cls())

    def swap(self, width: int, height: int) -> tuple[int, int]:
        """The size before or after the turn (it is its own inverse)."""
        return (height, width) if self.transpose else (width, height)

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """`picture` [h, w, 3] as it is meant to be seen."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        if self.mirror_x:
            picture = picture[:, ::-1]
        if self.mirror_y:
            picture = picture[::-1]
        return np.ascontiguousarray(picture)


_QUARTER_TURNS: dict[int, dict[str, bool]] = {
    0: {},
    90: {"transpose": True, "mirror_y": True},
    180: {"mirror_x": True, "mirror_y": True},
    -90: {"transpose": True, "mirror_x": True},
}
_EXIF_ORIENTATIONS: dict[object, Orientation] = {
    2: Orientation(mirror_x=True, rotation_deg=180),
    3: Orientation(**_QUARTER_TURNS[180], rotation_deg=180),
    4: Orientation(mirror_y=True),
    5: Orientation(transpose=True, rotation_deg=-90),
    6: Orientation(**_QUARTER_TURNS[-90], rotation_deg=-90),
    7: Orientation(transpose=True, mirror_x=True, mirror_y=True, rotation_deg=90),
    8: Orientation(**_QUARTER_TURNS[90], rotation_deg=90),
}


def displayed_width(width: int, sample_aspect: Fraction | None) -> int:
    """The width in pixels as high as they are wide. Nothing is filmed beyond 16:1, so that is taken for damage."""
    if sample_aspect is None or not 1 / _MAX_SAMPLE_ASPECT <= sample_aspect <= _MAX_SAMPLE_ASPECT:
        return width
    return max(1, round(width * sample_aspect))


def fit(width: int, height: int, max_side: int) -> tuple[int, int]:
    """The size whose longest side is at most `max_side`: aspect kept, never enlarged, no side below 1 pixel."""
    scale = min(1.0, max_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


class PictureRenderer:
    """Turns decoded frames into upright RGB pictures of one size, `width` × `height` as displayed.

    A frame whose coded size differs from its predecessors' is stretched to the same picture size.
    """

    def __init__(self, width: int, height: int, orientation: Orientation, scaler: int) -> None:
        self._scaled_width, self._scaled_height = orientation.swap(width, height)
        self._orientation = orientation
        self._reformatter = VideoReformatter()
        self._scaler = scaler

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 [height, width, 3]. Colours follow the frame's own matrix and range; HDR is not tone-mapped."""
        scaled = self._reformatter.reformat(
            frame, self._scaled_width, self._scaled_height, "rgb24", interpolation=self._scaler, threads=1
        )
        return self._orientation.upright(scaled.to_ndarray())
