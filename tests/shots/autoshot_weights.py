"""Weights for AutoShot's network by a rule, the one that its golden numbers were made with."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parents[1] / "golden/autoshot"


def published_shapes() -> dict[str, tuple[int, ...]]:
    """Name -> shape of the original network's state dict."""
    return {name: tuple(shape) for name, shape in json.loads((GOLDEN / "keys.json").read_text()).items()}


def weights_by_rule() -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(_values(name, shape)) for name, shape in published_shapes().items()}


def undecided_weights() -> dict[str, torch.Tensor]:
    """By the same rule, except that the head's bias is such that probabilities lie on both sides of any threshold."""
    weights = weights_by_rule()
    weights["cls_layer1.linear.bias"] += 43
    return weights


def _values(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    z = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 1 + np.float32(0.2) * np.abs(z)
    if name.endswith("running_mean"):
        return np.float32(0.1) * z
    if z.ndim == 1:
        return (1 if name.endswith("weight") else 0) + np.float32(0.1) * z
    return np.float32(1.5) * z / np.sqrt(np.float32(z[0].size))
