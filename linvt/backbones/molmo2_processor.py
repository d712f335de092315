"""Molmo 2's processor for one base tile an image, without torchvision, which Transformers' own needs.

Shape legend: T images, S×S pixels of a tile, P patches a side, p pixels a side of a patch, R×R tokens of a tile.
"""

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling
from transformers.models.molmo2.processing_molmo2 import Molmo2Processor
from transformers.processing_utils import ImagesKwargs


class _Settings(ImagesKwargs, total=False):
    patch_size: int
    pooling_size: list[int]


class Molmo2BaseTile(PilBackend):
    """What Transformers' `Molmo2ImageProcessor` returns of an image, less the crops at a higher resolution: an image is
    squeezed to S×S whatever its shape, bilinearly and without antialiasing, and rounded to whole pixel values."""

    valid_kwargs = _Settings
    model_input_names: ClassVar = ["pixel_values", "image_token_pooling", "image_grids"]
    resample = PILImageResampling.BILINEAR
    image_mean, image_std = IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD
    size: ClassVar = {"height": 378, "width": 378}
    do_resize = do_rescale = do_normalize = do_convert_rgb = True
    patch_size = 14
    pooling_size: ClassVar = [2, 2]

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        size: Any,
        rescale_factor: float,
        image_mean: Any,
        image_std: Any,
        patch_size: int,
        pooling_size: list[int],
        return_tensors: Any,
        **others: Any,
    ) -> BatchFeature:
        """`pixel_values` float32 [T, P², p·p·3], `image_token_pooling` int64 [T·R², patches that a token pools] with -1
        for none, `image_grids` int64 [T, 4]: R, R, and no rows or columns of crops."""
        differing = {key: others.get(key) for key in _FIXED if others.get(key) not in (None, _FIXED[key])}
        if differing or size.height != size.width:
            raise ValueError(f"Molmo 2's preprocessing with {differing}, size {size}; expected {_FIXED} and a square")
        side = size.height
        tiles_T3SS = torch.cat([_squeezed(torch.from_numpy(np.ascontiguousarray(x)), side) for x in images])
        # Mean and deviation in pixel values, as Transformers fuses them: the same rounding.
        mean, std = (torch.tensor(v)[:, None, None] * (1 / rescale_factor) for v in (image_mean, image_std))
        patches = rearrange((tiles_T3SS - mean) / std, "t c (h i) (w j) -> t (h w) (i j c)", i=patch_size, j=patch_size)
        pooled, rows, columns = _pooled_patches(side // patch_size, pooling_size)
        offsets = torch.arange(len(images))[:, None, None] * patches.shape[1]
        return BatchFeature(
            {
                "pixel_values": patches,
                "image_token_pooling": torch.where(pooled >= 0, pooled + offsets, -1).flatten(0, 1),
                "image_grids": torch.tensor([[rows, columns, 0, 0]] * len(images)),
            },
            tensor_type=return_tensors,
        )


_FIXED = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": PILImageResampling.BILINEAR}


class Molmo2ForBaseTiles(Molmo2Processor):
    """An image in a prompt is its base tile alone, without the `<im_col>` that ends each row: video tokens stand for no
    place in a frame, so they have no rows."""

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs: Any) -> str:
        rows, columns = (int(n) for n in image_inputs["image_grids"][image_idx][:2])
        start = "<low_res_im_start>" if self.use_single_crop_start_token else "<im_start>"
        return f"{start}{'<im_patch>' * (rows * columns)}<im_end>"


def _squeezed(image_3HW: Tensor, side: int) -> Tensor:
    """float32 [1, 3, S, S] of uint8 values."""
    resized = F.interpolate(image_3HW[None].float(), (side, side), mode="bilinear", antialias=False)
    return resized.round().clamp(0, 255)


def _pooled_patches(per_side: int, pooling_size: list[int]) -> tuple[Tensor, int, int]:
    """The patches that each token of a tile pools, int64 [rows·columns, patches] with -1 beyond the tile's edges, and
    the rows and columns of tokens. Of an odd number of patches beyond the edges, the larger half is on the right and
    bottom."""
    height, width = pooling_size
    above, beside = -per_side % height, -per_side % width
    patches = F.pad(
        torch.arange(per_side**2).view(per_side, per_side),
        (beside // 2, beside - beside // 2, above // 2, above - above // 2),
        value=-1,
    )
    pooled = rearrange(patches, "(r i) (c j) -> r c (i j)", i=height, j=width)
    rows, columns = pooled.shape[:2]
    return pooled.flatten(0, 1), rows, columns
