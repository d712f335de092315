"""The adapter of docs/backbones.md, as a user would add it: from an installed package, by an entry point."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from linvt.backbones import load_backbone, vision_fingerprint
from linvt.backbones.checking import check_backbone
from tests.backbones.text_tokenizer import save_text_tokenizer

DOCS = Path(__file__).parents[2] / "docs/backbones.md"
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 7}
LLM = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 120}


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """A checkpoint in the example's layout, and the example installed."""
    torch.set_num_threads(1)
    code = re.search(r"## Add your own.*?```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    entry = re.search(r'my-vl = "(.*?)"', DOCS.read_text())
    assert code is not None
    assert entry is not None
    package, module = entry[1].partition(":")[0].split(".")
    (tmp_path / package).mkdir()
    (tmp_path / package / f"{module}.py").write_text(code[1])
    (tmp_path / "my-1.dist-info").mkdir()
    (tmp_path / "my-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: my\nVersion: 1\n")
    (tmp_path / "my-1.dist-info/entry_points.txt").write_text(f"[linvt.backbones]\nmy-vl = {entry[1]}\n")
    monkeypatch.syspath_prepend(tmp_path)

    directory = tmp_path / "checkpoint"
    directory.mkdir()
    torch.manual_seed(0)
    tower, llm = CLIPVisionModel(CLIPVisionConfig(**VISION)), LlamaForCausalLM(LlamaConfig(**LLM))
    bridge = torch.nn.Linear(VISION["hidden_size"], LLM["hidden_size"])
    parts = {"eye": tower, "bridge": bridge, "mouth": llm}
    state = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}
    for value in state.values():
        if value.ndim > 1:
            value.normal_(std=0.35)
    save_file(state, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps({"model_type": "my_vl", "vision": VISION, "llm": LLM}))
    save_text_tokenizer(directory, ("<pad>", "<s>", "</s>"), eos_token="</s>")
    return directory


def test_the_example_of_the_docs_loads_and_passes_every_check(directory):
    report = check_backbone(str(directory), max_new_tokens=4)
    assert report.failed == []
    assert report.facts["adapter"] == "MyBackbone"
    assert (report.facts["tokens_per_frame"], report.facts["grid"]) == (16, (4, 4))
    frames = np.zeros((2, 40, 30, 3), np.uint8)
    assert load_backbone(str(directory), parts={"vision"}).encode_frames(frames).tokens.shape == (2, 16, 48)
    assert len(vision_fingerprint(str(directory))) == 64
