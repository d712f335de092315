"""AutoShot (arXiv 2304.06116) for inference: the network that its search selected, with the published weights.

AutoShot keeps TransNetV2's frame and searches what fills it: six blocks, two and two of them around a shortcut and
followed by pooling, then the similarities of frames to their neighbours and two linear layers. The selected
architecture is 3_8_8_8_13_12_0_16_60: a block of kind 3, three of kind 8, one of kind 13 and one of kind 12, and no
self-attention after them. Batch normalisation is folded into the convolutions here.

The authors publish the weights as `ckpt_0_200_0.pth` (https://github.com/wentaozhu/AutoShot). Their predictions come
from windows of 100 frames, of which 25 … 74 count. Convolutions reach 88 frames to each side and similarities 50, both
beyond the 25 frames of context, so a window's length is part of the result, and the one here is theirs.

Shapes: B windows, T frames in a window, H × W pixels, C channels, M channels between the two halves of a convolution,
F filters of a branch.
"""

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import SafetensorError
from safetensors.torch import load_file

from linvt.shots.prediction import predict_in_windows
from linvt.shots.transnetv2 import colour_histograms, linear_layer, similarity_to_neighbours
from linvt.shots.windows import Windowing

_ARITHMETIC = "fp32-folded-1"  # change it with any change that moves probabilities
_WINDOWING = Windowing(length=100, context=25, length_step=100)
_BATCH_NORM_EPS = 1e-3
# What torch and safetensors raise on files that are damaged, of another kind, or hold more than tensors.
_UNREADABLE = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError)
_NORM_FIELDS = ("weight", "bias", "running_mean", "running_var")


@dataclass(frozen=True, kw_only=True, slots=True)
class _BlockSpec:
    """A DDCNNV2 of the paper: parallel (2+1)-D convolutions with temporal dilations 1, 2, 4, …, concatenated."""

    name: str
    num_inputs: int
    num_middle: int
    """M: what a spatial convolution gives to a temporal one."""
    num_outputs: int
    num_dilations: int
    shares_spatial: bool = False
    """The paper's variant A: one spatial convolution feeds all temporal ones."""

    @property
    def branches(self) -> list[int]:
        """F of each branch: equal shares of the outputs, and the last branch takes what is left over."""
        share = self.num_outputs // self.num_dilations
        return [share] * (self.num_dilations - 1) + [self.num_outputs - share * (self.num_dilations - 1)]

    def spatial(self, branch: int) -> str:
        return f"{self.name}.share.weight" if self.shares_spatial else f"{self._layers(branch)}.0.weight"

    def temporal(self, branch: int) -> str:
        return f"{self._layers(branch)}.{0 if self.shares_spatial else 1}.weight"

    def _layers(self, branch: int) -> str:
        return f"{self.name}.conv_blocks.{branch}.layers"


_BLOCKS = (
    _BlockSpec(name="Layer_0_3", num_inputs=3, num_middle=16, num_outputs=64, num_dilations=4),
    _BlockSpec(name="Layer_1_8", num_inputs=64, num_middle=64, num_outputs=64, num_dilations=5, shares_spatial=True),
    _BlockSpec(name="Layer_2_8", num_inputs=64, num_middle=128, num_outputs=128, num_dilations=5, shares_spatial=True),
    _BlockSpec(name="Layer_3_8", num_inputs=128, num_middle=128, num_outputs=128, num_dilations=5, shares_spatial=True),
    _BlockSpec(name="Layer_4_13", num_inputs=128, num_middle=192, num_outputs=256, num_dilations=5),
    _BlockSpec(name="Layer_5_12", num_inputs=256, num_middle=128, num_outputs=256, num_dilations=5),
)
_LINEAR_SHAPES = {
    "frame_sim_layer.projection": (128, 64 + 128 + 256),
    "frame_sim_layer.fc": (128, 101),
    "color_hist_layer.fc": (128, 101),
    "fc1_0": (1024, 128 + 128 + 256 * 3 * 6),
    "fc1": (1024, 1024 + 128 + 128 + 256 * 3 * 6),
    "cls_layer1": (1, 1024),
    "cls_layer2": (1, 1024),
}
"""All that a checkpoint holds. "fc1" is for architectures with self-attention and "cls_layer2" for training; neither is
used here."""


class AutoShotDetector:
    """A ShotDetector; threads are the caller's to fix (`torch.set_num_threads`)."""

    name = "autoshot"

    def __init__(self, weights: Mapping[str, torch.Tensor], *, device: str = "cpu") -> None:
        """weights: as from `read_weights`."""
        self.fingerprint = fingerprint(weights)
        self._network = AutoShot(weights).to(device)
        self._device = device

    def predict(self, frames: np.ndarray) -> np.ndarray:
        """float32 [F] probabilities (single-frame head) for frames uint8 [F, 27, 48, 3] RGB, F >= 1."""
        return self.predict_stream([frames])

    def predict_stream(self, chunks: Iterable[np.ndarray]) -> np.ndarray:
        """`predict` for frames that come in chunks; the same bits in any division."""
        return predict_in_windows(self._network, chunks, _WINDOWING, device=self._device)


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: the authors' file, or a .safetensors file with the same names.

    Nothing but tensors is unpickled. Raises ValueError, naming what is wrong, for anything but the whole network.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"AutoShot's weights: there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = dict(torch.load(path, map_location="cpu", weights_only=True)["net"])
    except _UNREADABLE as error:
        raise ValueError(
            f"{path} is no checkpoint of AutoShot ({type(error).__name__}); expected a torch file with a state dict of "
            "plain tensors under 'net', as the authors' ckpt_0_200_0.pth, or a .safetensors file with those tensors"
        ) from error
    _check(tensors, path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def _check(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    expected = weight_shapes()
    given = {name: getattr(tensor, "shape", None) for name, tensor in tensors.items()}
    misshapen = [
        f"{name} {shape and list(shape)} instead of {list(expected[name])}"
        for name, shape in given.items()
        if name in expected and shape != expected[name]
    ]
    problems = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": misshapen,
    }
    if any(problems.values()):
        told = "; ".join(f"{problem}: {', '.join(names)}" for problem, names in problems.items() if names)
        raise ValueError(f"{path} does not hold AutoShot's network 3_8_8_8_13_12_0_16_60; {told}")


def weight_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of a checkpoint's tensors."""
    shapes: dict[str, tuple[int, ...]] = {}
    for block in _BLOCKS:
        for branch, num_filters in enumerate(block.branches):
            shapes[block.spatial(branch)] = (block.num_middle, block.num_inputs, 1, 3, 3)
            shapes[block.temporal(branch)] = (num_filters, block.num_middle, 3, 1, 1)
        shapes |= {f"{block.name}.batch_norm.{field}": (block.num_outputs,) for field in _NORM_FIELDS}
        shapes[f"{block.name}.batch_norm.num_batches_tracked"] = ()
    for name, (num_outputs, num_inputs) in _LINEAR_SHAPES.items():
        shapes[f"{name}.linear.weight"], shapes[f"{name}.linear.bias"] = (num_outputs, num_inputs), (num_outputs,)
    return shapes


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """Names the weights (SHA-256 of the tensors, whatever file they come from), the windows and the arithmetic."""
    hashed = hashlib.sha256()
    for name in sorted(weights):
        hashed.update(f"{name} {weights[name].dtype} {list(weights[name].shape)}\n".encode())
        hashed.update(weights[name].contiguous().numpy().tobytes())
    windowing = _WINDOWING
    return (
        f"autoshot-{hashed.hexdigest()[:16]}-w{windowing.length}.{windowing.context}.{windowing.length_step}"
        f"-{_ARITHMETIC}"
    )


class AutoShot(torch.nn.Module):
    """frames uint8 [B, T, 27, 48, 3] -> logits [B, T] of the single-frame head."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(DilatedBlock(weights, spec) for spec in _BLOCKS)
        self.projection = linear_layer(weights, "frame_sim_layer.projection.linear")
        self.frame_similarity = linear_layer(weights, "frame_sim_layer.fc.linear")
        self.colour_similarity = linear_layer(weights, "color_hist_layer.fc.linear")
        self.hidden = linear_layer(weights, "fc1_0.linear")
        self.head = linear_layer(weights, "cls_layer1.linear")
        self.requires_grad_(False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        num_windows, num_frames = frames.shape[:2]
        x = rearrange(frames, "b t h w c -> (b t) c h w").float().div_(255)
        block_means = []
        for first, second in zip(self.blocks[::2], self.blocks[1::2]):
            shortcut = first(x, num_windows).relu_()
            x = F.avg_pool2d(second(shortcut, num_windows).relu_().add_(shortcut), 2)
            block_means.append(x.mean(dim=(2, 3)))

        described = F.normalize(self.projection(torch.cat(block_means, dim=1)), dim=1)
        described = rearrange(described, "(b t) c -> b t c", t=num_frames)
        features = [
            self.colour_similarity(similarity_to_neighbours(colour_histograms(frames))).relu_(),
            self.frame_similarity(similarity_to_neighbours(described)).relu_(),
            rearrange(x, "(b t) c h w -> b t (h w c)", t=num_frames),
        ]
        return self.head(self.hidden(torch.cat(features, dim=2)).relu_())[..., 0]


class DilatedBlock(torch.nn.Module):
    """The paper's DDCNNV2, or its variant A, and batch norm."""

    def __init__(self, weights: Mapping[str, torch.Tensor], spec: _BlockSpec) -> None:
        super().__init__()
        self.spec = spec
        norm = {field: weights[f"{spec.name}.batch_norm.{field}"] for field in _NORM_FIELDS}
        scale = norm["weight"] / torch.sqrt(norm["running_var"] + _BATCH_NORM_EPS)
        shift = norm["bias"] - norm["running_mean"] * scale
        # One spatial convolution for all branches: they read the same input.
        names = dict.fromkeys(spec.spatial(branch) for branch in range(spec.num_dilations))
        self.register_buffer("spatial", _laid_out("m c 1 h w -> m c h w", torch.cat([weights[name] for name in names])))
        for branch, (branch_scale, branch_shift) in enumerate(
            zip(scale.split(spec.branches), shift.split(spec.branches))
        ):
            temporal = weights[spec.temporal(branch)] * branch_scale[:, None, None, None, None]
            self.register_buffer(f"temporal_{branch}", _laid_out("f m t 1 1 -> f m t 1", temporal))
            self.register_buffer(f"shift_{branch}", branch_shift.clone())

    def forward(self, x: torch.Tensor, num_windows: int) -> torch.Tensor:
        """x [B·T, C, H, W] -> [B·T, all F, H, W], before the non-linearity."""
        height, num_dilations = x.shape[2], self.spec.num_dilations
        spatial = F.conv2d(x, self.get_buffer("spatial"), padding=1)
        spatial = rearrange(spatial, "(b t) m h w -> b m t (h w)", b=num_windows)
        inputs = [spatial] * num_dilations if self.spec.shares_spatial else spatial.chunk(num_dilations, dim=1)
        branches = []
        for branch, branch_input in enumerate(inputs):
            temporal = F.conv2d(
                branch_input,
                self.get_buffer(f"temporal_{branch}"),
                self.get_buffer(f"shift_{branch}"),
                padding=(2**branch, 0),
                dilation=(2**branch, 1),
            )
            branches.append(rearrange(temporal, "b f t p -> b t p f"))
        # Channels lie last in memory, and joining tensors along any other dimension than the last is slow.
        return rearrange(torch.cat(branches, dim=-1), "b t (h w) f -> (b t) f h w", h=height)


def _laid_out(pattern: str, weight: torch.Tensor) -> torch.Tensor:
    return rearrange(weight, pattern).contiguous(memory_format=torch.channels_last)
