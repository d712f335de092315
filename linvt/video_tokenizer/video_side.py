"""What LinVT makes of a video alone, whatever is asked about it, and a memory of it for further questions.

Shape legend: V videos, K selected, P pooled (of all scales, side by side), C hidden size, H heads, D = C / H.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualKeys:
    """The aggregator's view of a video: pooled tokens, and the keys and values that all of its layers need of them."""

    pooled: Tensor
    """[V, P, C], the values that video tokens are averages of."""
    bias: Tensor
    """[V, P], the logarithm of each pooled token's weight; -inf where there is none."""
    times: Tensor
    """[V, P]"""
    mask: Tensor | None
    """[V, P], true = valid; None where all are."""
    counts: tuple[int, ...]
    """Pooled tokens of each scale."""
    layers: tuple[tuple[Tensor, Tensor], ...]
    """Keys and values [V, H, P, D] of each layer's attention to visual tokens."""
    weight_keys: Tensor
    """[V, H, P, D], the keys of the linear aggregation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoSide:
    """Scores, selection and pooling of videos: what `LinVT.encode_videos` returns and `LinVT.aggregate` reads."""

    chosen: Tensor
    """[V, K], the selected tokens' indices into T·N, in temporal order."""
    weights: Tensor
    """[V, K], their positive weights in float32; zero where fewer than K tokens are valid."""
    selected: Tensor
    """[V, K, C], the tokens themselves, untouched."""
    num_tokens: int
    """T·N."""
    keys: VisualKeys | None
    """None without TTA."""

    @property
    def num_bytes(self) -> int:
        tensors = [self.chosen, self.weights, self.selected]
        if self.keys is not None:
            tensors += [getattr(self.keys, field.name) for field in dataclasses.fields(self.keys)]
            tensors += [tensor for pair in self.keys.layers for tensor in pair]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))


class VideoSideCache:
    """Least-recently-used `VideoSide`s under `max_bytes`, for one thread and weights that do not change."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._sides: OrderedDict[Hashable, VideoSide] = OrderedDict()
        self.held_bytes = self.hits = self.misses = 0

    def get(self, video: Hashable, make: Callable[[], VideoSide]) -> VideoSide:
        """The side of `video`; when missing, the result of `make()`, which is kept if it fits at all."""
        if video in self._sides:
            self.hits += 1
            self._sides.move_to_end(video)
            return self._sides[video]
        self.misses += 1
        side = make()
        if side.num_bytes <= self._max_bytes:
            self._sides[video] = side
            self.held_bytes += side.num_bytes
            while self.held_bytes > self._max_bytes:
                self.held_bytes -= self._sides.popitem(last=False)[1].num_bytes
        return side
