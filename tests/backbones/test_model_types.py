"""The generic adapter on tiny random models of many types, and the table of what it does with each.

The table in docs/backbones.md is what these tests found; LINVT_WRITE_TABLE=1 writes it anew.
"""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from linvt.backbones import VisionOptions, load_backbone
from tests.backbones.parity import batched
from tests.backbones.tiny_types import TYPES, save_tiny

TABLE = Path(__file__).parents[2] / "docs" / "backbones.md"
BEGIN, END = "<!-- model types: begin -->", "<!-- model types: end -->"
COLUMNS = (
    "encode",
    "prompt",
    "spliced = own forward",
    "generate",
    "batching",
    "LoRA",
    "gradients",
    "parts",
    "reset",
    "bf16",
)
TOLERANCE = 2e-5
QUESTION: Any = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what color is the star ?"}]}
ANSWER: Any = {"role": "assistant", "content": "red"}
TWO_IMAGES: Any = {
    "role": "user",
    "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "here ?"}],
}
# What the type's own processor puts around an image.
AROUND = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), ("<|vision_start|>", "<|vision_end|>")),
    **dict.fromkeys(("smolvlm", "idefics3"), ("<fake_token_around_image> <global-img>", "<fake_token_around_image>")),
    "internvl": ("<img>", "</img>"),
    "gemma3": ("<start_of_image>", "<end_of_image>"),
    "mistral3": ("", "[IMG_END]"),
    "aya_vision": ("<|START_OF_IMG|> TILE_GLOBAL", "<|END_OF_IMG|>"),
    "glm4v": ("<|begin_of_image|>", "<|end_of_image|>"),
    "molmo2": ("<low_res_im_start>", "<im_end>"),
}
RUNNING = "positions of frames: t = h = w"
REMARKS = {
    "qwen2_vl": RUNNING,
    "qwen2_5_vl": RUNNING,
    "qwen3_vl": f"{RUNNING}; without deepstack features",
    "glm4v": RUNNING,
    "gemma3": "image tokens are read causally",
    "paligemma": "the prompt is read causally; no chat template: images first, then the text",
    "llava_next": "base tile, no line ends",
    "llava_onevision": "base tile, no line ends; frames of a video pooled to half the grid",
    "mistral3": "no line breaks",
    "molmo2": "image tokens are read causally; base tile, no line ends; frames of a video pooled 2×2, as images are",
}
FOLLOWS_SHAPE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mistral3")
# Of what an image processor makes.
TAKEN = ("pixel_values", "image_grid_thw", "image_sizes", "image_token_pooling", "image_grids")
# The one tensor of the LLM that a vision part reads a row of (Molmo 2).
EMBEDDING = "model.language_model.embed_tokens.weight"
# More than a model's own tokens for one image: other tiles and ends of lines, which come after the base tile's.
MORE_OF_AN_IMAGE = ("llava_next", "llava_onevision")

_found: dict[str, dict[str, str]] = {name: {} for name in TYPES}


@pytest.fixture(scope="module", params=TYPES)
def tiny(request, tmp_path_factory) -> SimpleNamespace:
    torch.set_num_threads(1)
    name = request.param
    directory = save_tiny(name, tmp_path_factory.mktemp(name))
    frames = np.random.default_rng(0).integers(0, 256, (3, *TYPES[name].frame_size, 3), dtype=np.uint8)
    return SimpleNamespace(name=name, directory=directory, backbone=load_backbone(str(directory)), frames=frames)


def _record(column: str) -> Callable[[Any], Any]:
    """What a check that passes puts into the table."""

    def wrap(check: Any) -> Any:
        def checked(tiny: SimpleNamespace) -> None:
            _found[tiny.name][column] = "no"
            check(tiny)
            _found[tiny.name][column] = "yes"

        checked.__name__, checked.__doc__ = check.__name__, check.__doc__
        return checked

    return wrap


@_record("encode")
def test_frames_become_the_tokens_that_each_gives_alone(tiny):
    encoded = tiny.backbone.encode_frames(tiny.frames, batch_size=2, kind="image")
    assert encoded.tokens.shape[0] == 3
    assert encoded.tokens.shape[2] == tiny.backbone.hidden_size
    rows, columns = encoded.grid
    assert (rows, columns) != (1, 1)
    for i in range(3):
        alone = tiny.backbone.encode_frames(tiny.frames[i : i + 1], batch_size=1, kind="image")
        assert alone.grid == encoded.grid
        torch.testing.assert_close(alone.tokens[0], encoded.tokens[i], atol=TOLERANCE, rtol=1e-5)
    assert (encoded.tokens[0] - encoded.tokens[1]).abs().max() > 0.1


def test_frames_of_videos_of_any_shape_have_one_grid(tiny):
    follows_shape = tiny.name in FOLLOWS_SHAPE
    side = VisionOptions(frame_side=84) if follows_shape else VisionOptions()
    backbone = load_backbone(str(tiny.directory), parts={"vision"}, options=side)
    wide, tall = tiny.frames[:1, :48], tiny.frames[:1, :, :48]
    assert wide.shape != tall.shape
    grids = {backbone.encode_frames(frames).grid for frames in (wide, tall)}
    assert len(grids) == 1
    (grid,) = grids
    assert grid[0] == grid[1]
    if not follows_shape:
        refusing = load_backbone(str(tiny.directory), parts={"vision"}, options=VisionOptions(frame_side=84))
        with pytest.raises(ValueError, match="for models that take any shape"):
            refusing.encode_frames(wide)


@_record("prompt")
def test_prompts_are_the_processors_own(tiny):
    backbone = tiny.backbone

    def read(messages: Any) -> list[str]:
        return [backbone.text_tokenizer.decode(list(s)).strip() for s in backbone.prompt(messages).segments]

    before, after = AROUND.get(tiny.name, ("", ""))
    bos = "" if tiny.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") else "<bos> "
    asked = "what color is the star ?"
    if tiny.name == "paligemma":
        assert read([QUESTION]) == ["", f"<bos> {asked}"]
        assert read([TWO_IMAGES]) == ["", "", "<bos> here ?"]
    else:
        assert read([QUESTION]) == [f"{bos}user : {before}".strip(), f"{after} {asked} assistant :".strip()]
        assert read([QUESTION, ANSWER, TWO_IMAGES]) == [
            f"{bos}user : {before}".strip(),
            f"{after} {asked} assistant : red <eos> user : {before}".strip(),
            f"{after} {before}".strip(),
            f"{after} here ? assistant :".strip(),
        ]
        assert read([{"role": "user", "content": "here ?"}]) == [f"{bos}user : here ? assistant :"]
    answer = backbone.answer_ids([QUESTION], "red")
    assert backbone.decode(answer) == "red"
    assert answer[-1] in backbone.stop_ids


def test_a_conversation_goes_on_with_what_was_said_before(tiny):
    backbone, again = tiny.backbone, {"role": "user", "content": "where is it ?"}
    if tiny.name == "paligemma":
        with pytest.raises(ValueError, match="conversations of several turns cannot be trained on"):
            backbone.question_ids([QUESTION, ANSWER], again["content"])
        return
    in_parts = [
        *backbone.prompt([QUESTION]).after,
        *backbone.answer_ids([QUESTION], ANSWER["content"]),
        *backbone.question_ids([QUESTION, ANSWER], again["content"]),
    ]
    assert in_parts == list(backbone.prompt([QUESTION, ANSWER, again]).after)


def test_text_that_imitates_media_is_refused(tiny):
    backbone = tiny.backbone
    for mark in (backbone.processor.image_token, backbone.text_tokenizer.decode([backbone.image_token_id])):
        imitating = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": f"here {mark} ?"}]}
        with pytest.raises(ValueError, match="2 media slots out of 1"):
            backbone.prompt([imitating])


def _row(tiny: SimpleNamespace) -> torch.Tensor:
    """The embedded question [L, C] about the first frame."""
    backbone, prompt = tiny.backbone, tiny.backbone.prompt([QUESTION])
    before, after = (backbone.embed(torch.tensor(s, dtype=torch.long)) for s in prompt.segments)
    return torch.cat([before, backbone.encode_frames(tiny.frames[:1], batch_size=1, kind="image").tokens[0], after])


def _logits(backbone: Any, row: torch.Tensor) -> torch.Tensor:
    mask = torch.ones(1, len(row), dtype=torch.bool)
    return backbone.head(backbone.hidden_states(row[None], mask))[0]


@_record("spliced = own forward")
@torch.no_grad()
def test_spliced_frame_tokens_give_the_models_own_image_logits(tiny):
    """Embedding text around our frame tokens must be what the model itself does with pixels and image tokens."""
    backbone = load_backbone(str(tiny.directory)) if tiny.name == "qwen3_vl" else tiny.backbone
    model: Any = backbone.model
    prompt = backbone.prompt([QUESTION])
    if tiny.name == "qwen3_vl":
        for merger in model.model.visual.deepstack_merger_list:
            nn.init.zeros_(merger.linear_fc2.weight)
            nn.init.zeros_(merger.linear_fc2.bias)
    one_tile = {} if tiny.name in MORE_OF_AN_IMAGE else backbone._one_tile
    processed = backbone.image_processor(images=[tiny.frames[0]], return_tensors="pt", **one_tile)
    pixels: dict[str, Any] = {k: v for k, v in processed.items() if k in TAKEN}
    owner: Any = model if hasattr(model, "get_image_features") else model.model
    own_features = owner.get_image_features(**pixels, return_dict=True).pooler_output
    own_features = torch.cat([f.reshape(-1, f.shape[-1]) for f in own_features])
    tokens = backbone.encode_frames(tiny.frames[:1], batch_size=1, kind="image").tokens[0]
    more = own_features[len(tokens) :]
    assert (len(more) > 0) is (tiny.name in MORE_OF_AN_IMAGE)

    ids = torch.tensor([[*prompt.before, *[backbone.image_token_id] * len(own_features), *prompt.after]])
    running = torch.arange(ids.shape[1])[None]
    positions = running.expand(3, -1, -1) if tiny.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v") else running
    own = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, **pixels).logits[0]

    before, after = (backbone.embed(torch.tensor(s, dtype=torch.long)) for s in prompt.segments)
    ours = torch.cat([before, tokens, more, after])
    torch.testing.assert_close(_logits(backbone, ours), own, atol=TOLERANCE, rtol=1e-5)
    # An answer is read causally: what is to be predicted must not be seen.
    torch.testing.assert_close(_logits(backbone, ours[:-3]), own[:-3], atol=TOLERANCE, rtol=1e-5)


@_record("generate")
@torch.no_grad()
def test_generate_is_greedy_decoding_also_behind_left_padding(tiny):
    backbone, row = tiny.backbone, _row(tiny)
    expected, longer = [], row
    for _ in range(5):
        next_id = int(_logits(backbone, longer)[-1].argmax())
        if next_id in backbone.stop_ids:
            break
        expected.append(next_id)
        longer = torch.cat([longer, backbone.embed(torch.tensor([next_id]))])
    padded = torch.stack([torch.cat([torch.zeros(4, row.shape[1]), row]), torch.cat([row, row[-4:]])])
    mask = torch.ones(padded.shape[:2], dtype=torch.bool)
    mask[0, :4] = False
    assert expected
    assert backbone.generate(row[None], mask[:1, 4:], max_new_tokens=5) == [expected]
    assert backbone.generate(padded, mask, max_new_tokens=5)[0] == expected


@_record("batching")
def test_rows_that_come_and_go_in_a_batch_say_what_they_say_alone(tiny):
    backbone, row = tiny.backbone, _row(tiny)
    prompts = [(row, 9), (torch.cat([row[-3:], row]), 4), (row[2:], 12), (row[5:], 7)]
    expected = [
        backbone.generate(prompt[None], torch.ones(1, len(prompt), dtype=torch.bool), max_new_tokens=tokens)[0]
        for prompt, tokens in prompts
    ]
    assert batched(backbone, prompts, max_rows=3) == expected


@_record("LoRA")
def test_lora_targets_are_the_decoders_linears_and_no_others(tiny):
    backbone = tiny.backbone
    targets = [backbone.model.get_submodule(name) for name in backbone.lora_targets()]
    linears = [m for m in backbone.model.get_decoder().modules() if isinstance(m, nn.Linear)]
    assert targets
    assert {id(m) for m in targets} == {id(m) for m in linears}
    vision = {id(m) for m in load_backbone(str(tiny.directory), parts={"vision"}).model.modules()}
    assert not vision & {id(m) for m in targets}
    assert not any(part in name for name in backbone.lora_targets() for part in ("vision", "visual", "project", "conn"))


@_record("gradients")
def test_gradients_reach_spliced_embeddings_also_under_checkpointing(tiny):
    backbone = load_backbone(str(tiny.directory), parts={"llm"})
    row = _row(tiny)
    gradients = []
    for is_checkpointed in (False, True):
        if is_checkpointed:
            backbone.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            backbone.train()
        embeds = row.detach().clone().requires_grad_()
        _logits(backbone, embeds).log_softmax(-1)[:, 5].sum().backward()
        assert embeds.grad is not None
        gradients.append(embeds.grad)
    assert torch.isfinite(gradients[0]).all()
    assert (gradients[0].abs().amax(-1) > 0).all()
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def _only_row(table: torch.Tensor, row: int) -> torch.Tensor:
    return torch.full_like(table, torch.nan).index_copy(0, torch.tensor([row]), table[row : row + 1])


def _copy_of(directory: Path, target: Path, tensors: dict[str, torch.Tensor]) -> Path:
    target.mkdir()
    for file in directory.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


@_record("parts")
def test_parts_need_none_of_each_others_tensors_and_agree_with_the_whole(tiny):
    """Each part loads from a checkpoint that has nothing but its own tensors."""
    stored = load_file(tiny.directory / "model.safetensors")
    if tiny.name == "molmo2":  # Its published tensors are several parameters each.
        stored = tiny.backbone.model.state_dict()
    parts = {p: load_backbone(str(tiny.directory), parts={p}) for p in ("vision", "llm")}
    counts = {p: sum(x.numel() for x in backbone.parameters()) for p, backbone in parts.items()}
    assert sum(counts.values()) == sum(x.numel() for x in tiny.backbone.parameters())
    values = {p: {x.contiguous().numpy().tobytes() for x in b.parameters()} for p, b in parts.items()}
    alone = {}
    for part, other in (("vision", "llm"), ("llm", "vision")):
        own = {k: v for k, v in stored.items() if v.numpy().tobytes() not in values[other]}
        assert sum(v.numel() for v in own.values()) == counts[part]
        if tiny.name == "molmo2" and part == "vision":
            own |= {EMBEDDING: _only_row(stored[EMBEDDING], tiny.backbone.image_token_id)}
        alone[part] = load_backbone(str(_copy_of(tiny.directory, tiny.directory.with_name(part), own)), parts={part})
    tokens = tiny.backbone.encode_frames(tiny.frames, kind="image").tokens
    assert torch.equal(alone["vision"].encode_frames(tiny.frames, kind="image").tokens, tokens)
    row = _row(tiny)
    with torch.no_grad():
        assert torch.equal(_logits(alone["llm"], row), _logits(tiny.backbone, row))
    for part in ("vision", "llm"):
        for file in tiny.directory.with_name(part).iterdir():
            file.unlink()
        tiny.directory.with_name(part).rmdir()


@_record("reset")
def test_the_intermediate_layer_can_be_reset_by_a_seed(tiny):
    fresh, again, other = (
        load_backbone(str(tiny.directory), options=VisionOptions(reset_intermediate=seed)) for seed in (1, 1, 2)
    )
    tokens = [b.encode_frames(tiny.frames, kind="image").tokens for b in (tiny.backbone, fresh, again, other)]
    assert torch.isfinite(tokens[1]).all()
    assert torch.equal(tokens[1], tokens[2])
    assert not torch.equal(tokens[1], tokens[3])
    assert (tokens[0] - tokens[1]).abs().max() > 0.1
    row = _row(tiny)
    with torch.no_grad():
        assert torch.equal(_logits(fresh, row), _logits(tiny.backbone, row))


@_record("bf16")
@torch.no_grad()
def test_bfloat16_stays_close_and_keeps_its_frequencies(tiny):
    half = load_backbone(str(tiny.directory), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    expected = dict(tiny.backbone.named_buffers())
    for name, buffer in half.named_buffers():
        if "inv_freq" in name:
            assert torch.equal(buffer, expected[name]), name
    tokens = [b.encode_frames(tiny.frames, kind="image").tokens.float() for b in (half, tiny.backbone)]
    assert torch.isfinite(tokens[0]).all()
    assert torch.cosine_similarity(tokens[0].flatten(), tokens[1].flatten(), dim=0) > 0.99
    row = _row(tiny)
    logits = [_logits(half, row.bfloat16()).float(), _logits(tiny.backbone, row)]
    assert torch.isfinite(logits[0]).all()
    assert torch.cosine_similarity(logits[0].flatten(), logits[1].flatten(), dim=0) > 0.99


def test_the_documented_table_is_what_was_found():
    if any(set(found) != set(COLUMNS) for found in _found.values()):
        pytest.skip("only some of the checks ran")
    rows = [f"| model type | {' | '.join(COLUMNS)} | remarks |", "|" + " --- |" * (len(COLUMNS) + 2)]
    for name, found in sorted(_found.items()):
        rows.append(f"| `{name}` | {' | '.join(found[column] for column in COLUMNS)} | {REMARKS.get(name, '')} |")
    table = "\n".join(rows)
    text = TABLE.read_text()
    before, rest = text.split(BEGIN)
    committed, after = rest.split(END)
    if os.environ.get("LINVT_WRITE_TABLE"):
        TABLE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
    else:
        assert committed.strip() == table
