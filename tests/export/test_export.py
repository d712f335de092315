import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers.models.auto import AutoModelForImageTextToText

from linvt import LinVT, LinVTConfig, VideoLLM, load_backbone
from linvt.backbones import vision_fingerprint
from linvt.backbones.checkpoint import Checkpoint, Placed, Rule
from linvt.export.config import ExportConfig
from linvt.export.export import export
from linvt.export.merge import _with_merged
from linvt.lora import adapted_modules, add_lora
from tests.backbones.parity import logits
from tests.backbones.published_models import SPECIAL_TOKENS, save_published
from tests.backbones.tiny_types import save_tiny

# qwen2_vl and paligemma: Transformers renames tensors of these on the way from and to a checkpoint.
TYPES = ("llava", "qwen2_vl", "gemma3", "paligemma")


@pytest.fixture(scope="module", params=[*SPECIAL_TOKENS, *TYPES])
def image_llm(request, tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    return (save_published if request.param in SPECIAL_TOKENS else save_tiny)(request.param, folder)


def save_model(image_llm: Path, folder: Path, *, lora: bool = True) -> VideoLLM:
    torch.manual_seed(0)
    backbone = load_backbone(str(image_llm), parts=("llm",))
    config = LinVTConfig(hidden_size=backbone.hidden_size, top_k=8, num_queries=(4, 2, 1), num_layers=1, num_heads=2)
    if lora:
        add_lora(backbone, rank=2, alpha=4, dropout=0.0)
        for name, parameter in backbone.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model = VideoLLM(backbone, LinVT(config)).eval()
    model.save_pretrained(folder, extraction={"feature": {"num_frames": 8}})
    return model


def embeds(model: VideoLLM) -> torch.Tensor:
    return torch.randn(1, 9, model.backbone.hidden_size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_merged_answers_as_unmerged_does(image_llm, tmp_path):
    model = save_model(image_llm, tmp_path / "model")
    outcome = export(
        ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"), merge_lora=True, dtype="fp32")
    )
    assert outcome["merged"] is True
    expected = logits(model.backbone, embeds(model))
    with model.backbone.model.disable_adapter():
        assert not torch.allclose(logits(model.backbone, embeds(model)), expected, atol=1e-2)

    # Moved, it still finds what is inside, and the image-LLM it was made from is not asked for.
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    merged = VideoLLM.from_pretrained(tmp_path / "elsewhere")
    assert not isinstance(merged.backbone.model, PeftModel)
    torch.testing.assert_close(logits(merged.backbone, embeds(model)), expected, atol=1e-4, rtol=1e-4)
    own, copied = load_backbone(str(image_llm)), merged.backbone
    assert own.stop_ids == copied.stop_ids
    assert own.text_ids("what color") == copied.text_ids("what color")
    # Caches made with the image-LLM are the merged one's, too.
    assert vision_fingerprint(str(image_llm)) == vision_fingerprint(str(tmp_path / "elsewhere" / "image_llm"))
    assert Checkpoint(tmp_path / "elsewhere" / "image_llm").names == Checkpoint(image_llm).names


@torch.no_grad()
def test_merged_in_the_stored_precision_is_as_close_as_it_can_be(tmp_path):
    directory = save_published("molmo", tmp_path / "image-llm")
    stored = load_file(directory / "model.safetensors")
    half = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in stored.items()}
    save_file(half, directory / "model.safetensors")
    model = save_model(directory, tmp_path / "model")
    export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"), merge_lora=True))
    tensors = load_file(tmp_path / "out" / "image_llm" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    merged = load_backbone(str(tmp_path / "out" / "image_llm"), parts=("llm",))
    for name, module in adapted_modules(model.backbone).items():
        whole = module.get_base_layer().weight + module.get_delta_weight("default")  # pyright: ignore
        assert torch.equal(merged.model.get_submodule(name).weight, whole.bfloat16().float())


def test_values_that_are_computed_on_their_way_cannot_be_merged():
    halved = Rule("llm", r"a\.(.*)", lambda match, tensor: [Placed(f"model.{match[1]}", tensor / 2)])
    with pytest.raises(ValueError, match=r"a\.weight is not only moved but computed"):
        _with_merged("a.weight", torch.rand(4, 4), halved, {"model.weight": torch.zeros(4, 4)}, set(), "stored")


@pytest.mark.parametrize("name", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_peft_itself_loads_the_adapter(name, tmp_path):
    directory = save_tiny(name, tmp_path / "image-llm")
    model = save_model(directory, tmp_path / "model")
    export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out")))
    whole = AutoModelForImageTextToText.from_pretrained(directory)
    peft = PeftModel.from_pretrained(whole, str(tmp_path / "out" / "adapter")).eval()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    ours = logits(model.backbone, model.backbone.embed(ids))
    torch.testing.assert_close(peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, ours, atol=1e-4, rtol=0)
    on_vision = [name for name, _ in peft.named_parameters() if "lora" in name and "language_model" not in name]
    assert on_vision == []


def test_an_export_is_whole_and_says_what_it_is(tmp_path):
    directory = save_tiny("llava", tmp_path / "image-llm")
    save_model(directory, tmp_path / "model")
    config = ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"))
    outcome = export(config)
    files = {file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {
        "README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "config.json",
        "generation_config.json",
        "linvt.safetensors",
    }
    assert outcome["bytes"] == sum((tmp_path / "out" / file).stat().st_size for file in files)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: linvt\npipeline_tag: video-text-to-text\n")
    assert "LinVT and a LoRA adapter" in card
    assert "| num_frames | 8 |" in card
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [3]
    assert not generation.get("do_sample", False)
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []

    with pytest.raises(ValueError, match="already holds this export"):
        export(config)
    resume = ExportConfig(model=config.model, out=config.out, on_existing="resume")
    written = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert export(resume) == outcome
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="already holds an export of other weights or settings"):
        export(ExportConfig(model=config.model, out=config.out, merge_lora=True, on_existing="resume"))
    export(ExportConfig(model=config.model, out=config.out, merge_lora=True, on_existing="overwrite"))
    assert not (tmp_path / "out" / "adapter").exists()
    assert "The adapter is merged into `image_llm/`" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="is a merged export"):
        export(ExportConfig(model=config.out, out=str(tmp_path / "again")))


def test_what_cannot_be_exported_is_refused(tmp_path):
    save_model(save_tiny("llava", tmp_path / "image-llm"), tmp_path / "model", lora=False)
    with pytest.raises(ValueError, match="has no adapter"):
        export(ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "out"), merge_lora=True))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    config = ExportConfig(model=str(tmp_path / "model"), out=str(tmp_path / "taken"), on_existing="overwrite")
    with pytest.raises(ValueError, match="is there and is no export"):
        export(config)
    assert (tmp_path / "taken" / "notes.txt").read_text() == "mine"
