"""How large decoded frames need to be for a backbone."""

from typing import Any


def side_for(image_processor: Any) -> int:
    """Pixels on the longer side beyond which a decoded frame gains nothing for a Transformers image processor."""
    size = dict(image_processor.size)
    sides = [size[k] for k in ("height", "width", "longest_edge", "shortest_edge") if size.get(k) is not None]
    # Some processors bound an area in pixels under the name of an edge.
    side = max((round(s**0.5) if s > 4096 else s for s in sides), default=448)
    # Twice the encoder's size leaves its own resampling filter something to filter.
    return min(2 * side, 1024)
