"""The tensors of a checkpoint, read one at a time, and a model filled with them by rules."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

_INDEX = "model.safetensors.index.json"
_MOST_NAMED = 12


class Checkpoint:
    """The safetensors of a directory, one file or sharded. Only files that hold a tensor asked for are opened.

    `tensors_read` and `bytes_read` count what was read. Raises ValueError if there is nothing to read.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.tensors_read, self.bytes_read = 0, 0
        self._files = _files_of_tensors(directory)
        self._opened: dict[str, safe_open] = {}

    @property
    def names(self) -> list[str]:
        return sorted(self._files)

    @property
    def files_opened(self) -> list[str]:
        return sorted(self._opened)

    def file_of(self, name: str) -> str:
        """The file, within the directory, that holds a tensor."""
        return self._files[name]

    def dtype_of(self, name: str) -> str:
        """As safetensors spell it: "F32", "BF16", …"""
        return self._open(self._files[name]).get_slice(name).get_dtype()

    def read(self, name: str) -> Tensor:
        tensor = self._open(self._files[name]).get_tensor(name)
        self.tensors_read += 1
        self.bytes_read += tensor.nbytes
        return tensor

    def num_rows(self, name: str) -> int:
        return self._open(self._files[name]).get_slice(name).get_shape()[0]

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of a tensor, and no others. Raises ValueError if they are not there."""
        if name not in self._files:
            raise ValueError(f"{self.directory}: the checkpoint does not fit its architecture: missing: {name}")
        rows = self._open(self._files[name]).get_slice(name)
        if stop > rows.get_shape()[0]:
            raise ValueError(f"{self.directory}: {name} is {rows.get_shape()}; expected at least {stop} rows")
        tensor = rows[start:stop]
        self.tensors_read += 1
        self.bytes_read += tensor.nbytes
        return tensor

    def _open(self, file: str) -> safe_open:
        if file not in self._opened:
            self._opened[file] = safe_open(self.directory / file, framework="pt")
        return self._opened[file]


def _files_of_tensors(directory: Path) -> dict[str, str]:
    index = directory / _INDEX
    if index.exists():
        files: dict[str, str] = json.loads(index.read_text())["weight_map"]
        absent = sorted({file for file in files.values() if not (directory / file).exists()})
        if absent:
            raise ValueError(f"{index} names files that are not there: {absent}; download the checkpoint again")
        return files
    files = {}
    single = directory / "model.safetensors"
    for path in [single] if single.exists() else sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            files |= dict.fromkeys(tensors.keys(), path.name)
    if files:
        return files
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in directory.glob(pattern))
    if pickled:
        raise ValueError(
            f"{directory}: its weights are pickles ({', '.join(pickled[:3])}), which can run code when they are read; "
            "convert them to safetensors where you trust them: "
            "`python -m safetensors.convert` or `save_file(torch.load(FILE, weights_only=True), …)`"
        )
    raise ValueError(f"{directory}: no safetensors in it")


@dataclass(frozen=True, slots=True)
class Placed:
    """Rows [first_row, first_row + len(values)) of the model's tensor `target`, or all of it."""

    target: str
    values: Tensor
    first_row: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """Where tensors of a published layout go.

    `pattern` matches a whole name. `to` is the target's name (a template for `re.Match.expand`), a function of the
    match and the tensor, or None for what is published but never used. Nothing of a part that is not loaded is read.
    """

    part: str
    pattern: str
    to: str | Callable[[re.Match[str], Tensor], Iterable[Placed]] | None

    def place(self, name: str, tensor: Tensor) -> Iterable[Placed]:
        match = re.fullmatch(self.pattern, name)
        if match is None or self.to is None:
            return ()
        return [Placed(match.expand(self.to), tensor)] if isinstance(self.to, str) else self.to(match, tensor)


def rule_for(name: str, rules: Sequence[Rule]) -> Rule | None:
    """The first rule whose pattern matches."""
    return next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)


def fill(model: nn.Module, checkpoint: Checkpoint, rules: Sequence[Rule], parts: Collection[str]) -> None:
    """Copies what belongs to `parts` into `model`, by the first rule whose pattern matches.

    Each tensor of the model must be written exactly once, all of its rows. Raises ValueError that names every tensor
    that is missing, unexpected, of another shape, or written twice.
    """
    targets = {**dict(model.named_parameters(remove_duplicate=False)), **_persistent_buffers(model)}
    written: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    problems: defaultdict[str, list[str]] = defaultdict(list)
    for name in checkpoint.names:
        rule = rule_for(name, rules)
        if rule is None:
            problems["unexpected"].append(name)
            continue
        if rule.part not in parts or rule.to is None:
            continue
        for placed in rule.place(name, checkpoint.read(name)):
            target = targets.get(placed.target)
            if target is None:
                problems["unexpected"].append(f"{name} (for {placed.target})")
                continue
            problem = _write(target, placed, written[id(target)])
            if problem:
                problems[problem[0]].append(f"{name} → {placed.target}: {problem[1]}")
    for name, target in targets.items():
        rows = sum(stop - start for start, stop in written[id(target)])
        if rows < _num_rows(target):
            problems["missing"].append(f"{name} ({rows} of {_num_rows(target)} rows)" if rows else name)
    if problems:
        told = "; ".join(f"{kind}: {_some(names)}" for kind, names in sorted(problems.items()))
        raise ValueError(f"{checkpoint.directory}: the checkpoint does not fit its architecture: {told}")


def _write(target: Tensor, placed: Placed, written: list[tuple[int, int]]) -> tuple[str, str] | None:
    values, start = placed.values, placed.first_row or 0
    stop = start + _num_rows(values)
    whole = placed.first_row is None
    if values.shape[1:] != target.shape[1:] or (stop != _num_rows(target) if whole else stop > _num_rows(target)):
        return "mis-shaped", f"{tuple(values.shape)} at row {start}, expected {tuple(target.shape)}"
    rows = target.data[start:stop] if target.ndim else target.data
    if any(start < other_stop and other_start < stop for other_start, other_stop in written):
        # A tied head is published twice by some; the second copy must say the same.
        return None if torch.equal(rows, values.to(rows)) else ("written twice", "with other values")
    rows.copy_(values)
    written.append((start, stop))
    return None


def _num_rows(tensor: Tensor) -> int:
    return len(tensor) if tensor.ndim else 1


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in model.named_buffers() if name in kept}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
