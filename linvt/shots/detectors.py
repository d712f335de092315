"""The protocol of shot detectors, and the detectors there are."""

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

DETECTORS = ("transnetv2", "autoshot", "none")
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


def load_detector(
    name: str, *, weights: str | Path | None = None, device: str = "cpu", dtype: DetectorDtype = "float32"
) -> ShotDetector:
    """The detector called `name`, one of `DETECTORS`, on a torch device. Raises ValueError for another name.

    weights: AutoShot's checkpoint; ValueError where it is missing or does not fit, or for another detector.
    dtype: of TransNetV2's convolutions.
    """
    _check(name, weights)
    if weights is not None:
        from linvt.shots.autoshot import AutoShotDetector, read_weights  # torch: only where it is needed

        if dtype != "float32":
            raise ValueError(f"shot detector 'autoshot' computes in float32 alone, asked: {dtype}")
        return AutoShotDetector(read_weights(weights), device=device)
    if name == "transnetv2":
        import torch

        from linvt.shots.transnetv2 import TransNetV2Detector

        return TransNetV2Detector(device=device, dtype=getattr(torch, dtype))
    return OneShot()


def published_threshold(name: str) -> float:
    """The boundary probability above which a frame is in transition where the authors of a detector score it."""
    return 0.296 if name == "autoshot" else 0.5


def fast_detector_dtype(name: str = "transnetv2") -> DetectorDtype:
    """What this machine's processor is fastest in: elsewhere than on these, bfloat16 is slower than float32."""
    if name == "autoshot":
        return "float32"  # What bfloat16 does to its cuts was never measured.
    import torch

    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


def detector_fingerprint(name: str, weights: str | Path | None = None) -> str:
    """The fingerprint of the detector that `load_detector` would load, without building its network.

    Raises ValueError where `load_detector` would.
    """
    _check(name, weights)
    if weights is not None:
        from linvt.shots.autoshot import fingerprint, read_weights

        return fingerprint(read_weights(weights))
    return _transnetv2_fingerprint() if name == "transnetv2" else _NO_DETECTOR_FINGERPRINT


@functools.cache
def _transnetv2_fingerprint() -> str:
    from linvt.shots.transnetv2 import fingerprint

    return fingerprint()


def _check(name: str, weights: str | Path | None) -> None:
    """Lets pass a detector that there is, with weights if it is AutoShot and without if it is another."""
    if name not in DETECTORS:
        raise ValueError(f"unknown shot detector {name!r}; valid: {', '.join(DETECTORS)}")
    if name == "autoshot" and weights is None:
        raise ValueError(
            "shot detector 'autoshot' needs its weights: pass --detector-weights FILE, the authors' ckpt_0_200_0.pth, "
            "which https://github.com/wentaozhu/AutoShot links to"
        )
    if name != "autoshot" and weights is not None:
        raise ValueError(f"--detector-weights is for --detector autoshot; {name!r} takes none, got {weights}")
