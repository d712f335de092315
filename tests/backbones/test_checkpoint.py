"""Reading a checkpoint tensor by tensor, filling a model by rules: each tensor exactly once, or an error by name."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from linvt.backbones.checkpoint import Checkpoint, Placed, Rule, fill

RULES = [
    Rule("vision", r"eye\.(.*)", r"vision.\1"),
    Rule("vision", r"unused\..*", None),
    Rule("llm", r"mouth\.(.*)", r"llm.\1"),
    Rule("llm", r"fused", lambda match, rows: [Placed("llm.weight", rows[:2], 0), Placed("llm.weight", rows[2:], 2)]),
]


def _model() -> nn.Module:
    return nn.ModuleDict({"vision": nn.Linear(3, 2), "llm": nn.Linear(2, 4, bias=False)})


def _save(directory, **tensors):
    save_file({name.replace("_", "."): value for name, value in tensors.items()}, directory / "model.safetensors")
    return Checkpoint(directory)


def _whole(**changes):
    tensors = {"eye_weight": torch.ones(2, 3), "eye_bias": torch.ones(2), "mouth_weight": torch.ones(4, 2)}
    return {name: value for name, value in (tensors | changes).items() if value is not None}


def test_a_part_reads_its_own_tensors_and_files_alone(tmp_path):
    tensors = {"eye.weight": torch.ones(2, 3), "eye.bias": torch.ones(2), "mouth.weight": torch.ones(4, 2)}
    files = {"eye.weight": "a.safetensors", "eye.bias": "a.safetensors", "mouth.weight": "b.safetensors"}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, tmp_path / file)
    # A second copy, as some publish, is not in the index.
    save_file(tensors, tmp_path / "consolidated.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))

    checkpoint, model = Checkpoint(tmp_path), _model()
    vision = nn.ModuleDict({"vision": model["vision"]})
    fill(vision, checkpoint, RULES, {"vision"})
    assert checkpoint.files_opened == ["a.safetensors"]
    assert (checkpoint.tensors_read, checkpoint.bytes_read) == (2, 4 * (6 + 2))
    assert bool((vision["vision"].weight == 1).all())

    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names files that are not there: \['b.safetensors'\]"):
        Checkpoint(tmp_path)


def test_rows_of_one_tensor_may_come_from_several(tmp_path):
    rows, model = torch.arange(8.0).reshape(4, 2), _model()
    fill(
        model,
        _save(tmp_path, **_whole(mouth_weight=None), fused=rows, unused_x=torch.ones(1)),
        RULES,
        {"vision", "llm"},
    )
    assert torch.equal(model["llm"].weight, rows)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"eye_bias": None}, "missing: vision.bias"),
        ({"ear_weight": torch.ones(1)}, "unexpected: ear.weight"),
        ({"eye_scale": torch.ones(1)}, r"unexpected: eye.scale \(for vision.scale\)"),
        (
            {"eye_weight": torch.ones(2, 4)},
            r"mis-shaped: eye.weight → vision.weight: \(2, 4\) at row 0, expected \(2, 3\)",
        ),
        ({"eye_weight": torch.ones(3, 3)}, "mis-shaped: eye.weight"),
        ({"eye_weight": torch.ones(1, 3)}, "mis-shaped: eye.weight"),
        ({"mouth_weight": None, "fused": torch.ones(3, 2)}, r"missing: llm.weight \(3 of 4 rows\)"),
        ({"mouth_weight": None, "fused": torch.ones(5, 2)}, "mis-shaped: fused"),
        ({"fused": torch.zeros(4, 2)}, "written twice: (fused|mouth.weight) → llm.weight: with other values"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, changes, told):
    with pytest.raises(ValueError, match=f"does not fit its architecture.*{told}"):
        fill(_model(), _save(tmp_path, **_whole(**changes)), RULES, {"vision", "llm"})


def test_a_tensor_published_twice_with_equal_values_is_taken(tmp_path):
    fill(_model(), _save(tmp_path, **_whole(), fused=torch.ones(4, 2)), RULES, {"vision", "llm"})


def test_pickles_are_not_read(tmp_path):
    with pytest.raises(ValueError, match="no safetensors in it"):
        Checkpoint(tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"its weights are pickles \(pytorch_model.bin\).*convert them to safetensors"):
        Checkpoint(tmp_path)
