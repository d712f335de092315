"""Shots: boundary probabilities from a detector, and the shots they mean."""

from linvt.shots.boundaries import Shot, shots_from_probabilities
from linvt.shots.detectors import (
    DETECTORS,
    ShotDetector,
    detector_fingerprint,
    fast_detector_dtype,
    load_detector,
    published_threshold,
)

__all__ = [
    "DETECTORS",
    "Shot",
    "ShotDetector",
    "detector_fingerprint",
    "fast_detector_dtype",
    "load_detector",
    "published_threshold",
    "shots_from_probabilities",
]
