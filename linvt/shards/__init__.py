"""The cache of frame tokens: tar layout, writer, index and reader. The only place that knows keys and dtypes.

Names resolve on first use: listing and planning need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linvt.shards.commit import ShardError
    from linvt.shards.reader import Cache, read_cache
    from linvt.shards.sample import CachedVideo

__all__ = ["Cache", "CachedVideo", "ShardError", "read_cache"]

_HOME = {
    "Cache": "linvt.shards.reader",
    "CachedVideo": "linvt.shards.sample",
    "ShardError": "linvt.shards.commit",
    "read_cache": "linvt.shards.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'linvt.shards' has no attribute {name!r}; it exports {__all__}")
    return getattr(import_module(_HOME[name]), name)
