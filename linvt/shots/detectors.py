"""The protocol of shot detectors, and the detectors there are."""

import functools
from collections.abc import Iterable
from typing import Literal, Protocol

import numpy as np

DETECTORS = ("transnetv2", "none")
"""What `load_detector` knows."""
DetectorDtype = Literal["float32", "bfloat16"]

_NO_DETECTOR_FINGERPRINT = "none"


class ShotDetector(Protocol):
    """Anything that says after which frames of a video a shot ends."""

    name: str
    fingerprint: str
    """Names everything that decides on the probabilities: weights, windows, arithmetic. Part of a cache's identity."""

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """float32 [F], F >= 1: probability of each frame to be the last one of its shot, or inside a transition.

        frames: uint8 [F, 27, 48, 3], RGB, every frame of one video. The result depends on this video alone. For the
        same bits every time, run with the same number of torch threads on the same kind of device.
        """
        ...

    def predict_stream(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """`predict` for frames [n, 27, 48, 3] that come in chunks: memory does not grow with the video."""
        ...


class OneShot:
    """The detector "none": a video is one shot."""

    name = "none"
    fingerprint = _NO_DETECTOR_FINGERPRINT

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """float32 [F] of zeros."""
        return np.zeros(len(frames), np.float32)

    def predict_stream(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """float32 [F] of zeros."""
        return np.zeros(sum(map(len, chunks)), np.float32)


def load_detector(name: str, *, device: str = "cpu", dtype: DetectorDtype = "float32") -> ShotDetector:
    """The detector called `name`, one of `DETECTORS`, on a torch device. Raises ValueError for another name.

    dtype: of TransNetV2's convolutions.
    """
    if name == "none":
        return OneShot()
    if name == "transnetv2":
        import torch  # only where it is needed

        from linvt.shots.transnetv2 import TransNetV2Detector

        return TransNetV2Detector(device=device, dtype=getattr(torch, dtype))
    raise ValueError(_unknown(name))


def fast_detector_dtype() -> DetectorDtype:
    """What this machine's processor is fastest in: elsewhere than on these, bfloat16 is slower than float32."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


@functools.cache
def detector_fingerprint(name: str) -> str:
    """The fingerprint of the detector that `load_detector(name)` would load, without building its network."""
    if name == "none":
        return _NO_DETECTOR_FINGERPRINT
    if name == "transnetv2":
        from linvt.shots.transnetv2 import fingerprint

        return fingerprint()
    raise ValueError(_unknown(name))


def _unknown(name: str) -> str:
    return f"unknown shot detector {name!r}; valid: {', '.join(DETECTORS)}"
