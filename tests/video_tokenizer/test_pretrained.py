"""LinVT saved, brought back, and refused where it does not fit."""

import json
import re
from pathlib import Path

import pytest
import torch

import linvt
from linvt.video_tokenizer import LinVT, LinVTConfig
from tests.video_tokenizer.test_linvt import C, randomised

ROOT = Path(linvt.__file__).parent.parent
# One in eleven video tokens and one in forty channels of what the untouched weights gave on 2026-11-26.
# fmt: off
EXPECTED = [
    -2.90315, 1.17421, -0.87471, 0.91062, -0.06457, 0.00961, 0.12534, -0.39269, 1.7678, 0.42306, 0.03431, 0.89895,
    -0.88043, 0.29613, 0.26709, 0.21646, 0.51191, 0.37202, 0.70894, -0.29035, 0.48883, -0.28812, -0.56941, -0.24971,
    -0.03393, -0.76764, 0.64074, -0.29315, 0.13808, 1.48874, 1.24048, 0.58715, 0.71016, 0.08964, 0.58715, 0.15279,
    0.43304, 0.64333, -0.25686, -0.3517, -0.32895, -0.49777, 0.52721, -1.06611, 0.37669, -0.32189, 0.52758, -0.01188,
    1.22622, 1.085, 0.30873, -0.34089, -0.17092, 0.14325, 0.11929, -0.72887, 0.74057, -0.11474, -1.09965, -0.86216,
    0.19915, -0.60522, -0.1793, -0.45026, 0.51279, 0.37241, 0.70972, -0.29109, 0.48881, -0.28829, -0.56949, -0.24972,
]
# fmt: on
DOCUMENTATION = (ROOT / "docs/linvt.md").read_text()
CONFIG = LinVTConfig(hidden_size=C, top_k=9, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4)


def test_saved_and_brought_back_it_is_the_same(tmp_path):
    module = randomised(CONFIG, 1)
    module.save_pretrained(tmp_path)
    again = LinVT.from_pretrained(tmp_path, hidden_size=C)
    assert again.config == CONFIG
    assert not again.training
    tokens, text = torch.randn(1, 4, 3, C), torch.randn(1, 2, C)
    assert torch.equal(module(tokens, text).tokens, again(tokens, text).tokens)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "linvt.safetensors", "README.md"}
    assert json.loads((tmp_path / "config.json").read_text())["version"] == 1


def test_what_does_not_fit_is_refused(tmp_path):
    randomised(CONFIG, 1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained for C = 16 channels, the image-LLM has C = 896"):
        LinVT.from_pretrained(tmp_path, hidden_size=896)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"version": 2}))
    with pytest.raises(ValueError, match="version 2, expected linvt 1"):
        LinVT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_towers": 2}))
    with pytest.raises(ValueError, match="num_towers"):
        LinVT.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        LinVT.from_pretrained(tmp_path)


def test_the_embedded_weights_give_the_outputs_they_always_gave():
    """Written before the module learned its variants; a saved model must never come to mean something else."""
    module = LinVT.from_pretrained(ROOT / "linvt/tiny/weights/video_llm", hidden_size=128)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 40, 36, 128, generator=generator)
    text = torch.randn(3, 7, 128, generator=generator)
    frame_mask = torch.arange(40) < torch.tensor([[40], [30]])
    text_mask = torch.arange(7) < torch.tensor([[7], [7], [4]])
    with torch.no_grad():
        out = module(tokens, text, frame_mask, text_mask, video_index=torch.tensor([1, 0, 1]))
    expected = torch.tensor(EXPECTED)
    torch.testing.assert_close(out.tokens[:, ::11, ::40].flatten(), expected, atol=1e-4, rtol=1e-4)


def test_parameter_counts_are_those_of_the_documentation():
    """docs/linvt.md has a table of them, for the channels of each image-LLM, beside the paper's 267M."""
    rows = re.findall(r"^\|[^|]+\| (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|", DOCUMENTATION, re.MULTILINE)
    assert {int(row[0]) for row in rows} == {896, 1536, 2048, 2560, 3072, 3584, 4096}
    for c, *documented in rows:
        counts = []
        for width in (None, 256, 64):
            with torch.device("meta"):
                module = LinVT(LinVTConfig(hidden_size=int(c), refiner_width=width))
            counts.append(f"{sum(p.numel() for p in module.parameters()):,}")
        assert counts == documented, c
