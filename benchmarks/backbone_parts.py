"""What loading a part of an image-LLM reads and allocates, against loading the whole.

    python benchmarks/backbone_parts.py [DIRECTORY ...]

For each checkpoint (by default all of tests/golden, and the embedded one): tensors and bytes read from its safetensors,
and the peak of what torch allocated meanwhile (bfloat16 on the CPU; the files themselves are mapped, which is the page
cache's), each as a share of the whole's.
"""

import json
import os
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors
import torch
from torch.profiler import ProfilerActivity, profile
from transformers.utils import logging

from linvt.backbones import load_backbone

ROOT = Path(__file__).resolve().parent.parent
PARTS = ({"vision", "llm"}, {"vision"}, {"llm"})


@dataclass(slots=True)
class Read:
    tensors: int = 0
    nbytes: int = 0
    peak_bytes: int = 0


def main() -> None:
    logging.disable_progress_bar()
    # Transformers reads in threads of its own, whose allocations the profiler does not see.
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    directories = sys.argv[1:] or [*map(str, sorted((ROOT / "tests/golden").glob("*/model.safetensors")))]
    directories = [directory.removesuffix("/model.safetensors") for directory in directories]
    print("| model | part | tensors read | bytes read | of the whole | peak allocated | of the whole |")
    print("|---|---|---|---|---|---|---|")
    for directory in [*directories, "tiny"]:
        # What Transformers imports on first use is not the model's.
        load_backbone(directory)
        whole, *parts = (loading(directory, part) for part in PARTS)
        for names, read in zip(("whole", "vision", "llm"), (whole, *parts)):
            share = read.nbytes / whole.nbytes
            print(
                f"| {Path(directory).name} | {names} | {read.tensors} | {read.nbytes:,} | {share:.2f} "
                f"| {read.peak_bytes:,} | {read.peak_bytes / whole.peak_bytes:.2f} |",
                flush=True,
            )


def loading(directory: str, parts: set[str]) -> Read:
    read = Read()
    with counting(read), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        backbone = load_backbone(directory, parts=parts, dtype=torch.bfloat16)
    del backbone
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    # Mapping a file is an event, too, of no allocation.
    changes = [
        event["args"] for event in events if event.get("name") == "[memory]" and event["args"]["Total Allocated"]
    ]
    before = changes[0]["Total Allocated"] - changes[0]["Bytes"]
    read.peak_bytes = max(change["Total Allocated"] for change in changes) - before
    return read


@contextmanager
def counting(read: Read):
    """Counts what is read through `safe_open`, by us and by Transformers."""

    class Counting:
        def __init__(self, *args: Any, **kwargs: Any):
            self._file = safetensors.safe_open(*args, **kwargs)

        def __enter__(self):
            self._file.__enter__()
            return self

        def __exit__(self, *error: Any):
            return self._file.__exit__(*error)

        def __getattr__(self, name: str):
            return getattr(self._file, name)

        def get_tensor(self, name: str):
            return _count(read, self._file.get_tensor(name))

        def get_slice(self, name: str):
            return CountingSlice(self._file.get_slice(name))

    class CountingSlice:
        def __init__(self, view: Any):
            self._view = view

        def __getattr__(self, name: str):
            return getattr(self._view, name)

        def __getitem__(self, index: Any):
            return _count(read, self._view[index])

    with ExitStack() as patched:
        for module in ("linvt.backbones.checkpoint", "transformers.modeling_utils"):
            patched.enter_context(patch(f"{module}.safe_open", Counting))
        yield


def _count(read: Read, tensor: torch.Tensor) -> torch.Tensor:
    read.tensors += 1
    read.nbytes += tensor.nbytes
    return tensor


if __name__ == "__main__":
    main()
