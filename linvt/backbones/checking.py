"""Checks of a loaded image-LLM that need no reference: what must hold of any, and what only trained weights do.

Shape legend: T frames, N tokens a frame, C hidden size, L sequence length, V vocabulary.
"""

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from linvt.backbones.base import Message
from linvt.backbones.frozen import FrozenBackbone
from linvt.backbones.loading import load_backbone

_COLORS = ("red", "green", "blue")
_SIDE = 448
_SENTENCE = "the dog is in the box and the ball is on the box"
# Sums in another order differ by this much, relative to the largest value.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. `needs_training`: random weights may fail it, so that it is advice and no verdict."""

    name: str
    passed: bool
    found: str
    needs_training: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What `check_backbone` found."""

    facts: dict[str, Any]
    checks: list[Check]
    caption: str

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed and not check.needs_training]


def check_backbone(
    name: str,
    *,
    image: Path | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_new_tokens: int = 48,
    tell: Callable[[str], None] = lambda line: None,
) -> Report:
    """Loads the vision part, then the LLM, one after the other, and checks both. `tell` gets a line at a time.

    Raises ValueError where a part does not load.
    """
    facts: dict[str, Any] = {"backbone": name, "device": device, "dtype": str(dtype).removeprefix("torch.")}
    checks: list[Check] = []

    def note(check: Check) -> None:
        checks.append(check)
        verdict = "ok" if check.passed else ("look" if check.needs_training else "FAILED")
        tell(f"{verdict:>6}  {check.name}: {check.found}")

    picture = np.asarray(Image.open(image).convert("RGB")) if image is not None else _circle("red")
    shown = [_circle(color) for color in _COLORS]
    with _loaded(name, "vision", facts, tell, device=device, dtype=dtype) as vision:
        for check in _vision_checks(vision, np.stack(shown)):
            note(check)
        of_picture = vision.encode_frames(picture[None], batch_size=1)
        of_shown = [vision.encode_frames(frame[None], batch_size=1).tokens[0].cpu() for frame in shown]
        tokens_NC = of_picture.tokens[0].cpu()
        facts |= {"tokens_per_frame": len(tokens_NC), "grid": of_picture.grid, "hidden_size": vision.hidden_size}
    del vision
    with _loaded(name, "llm", facts, tell, device=device, dtype=dtype) as llm:
        for check in _llm_checks(llm, tokens_NC, of_shown):
            note(check)
        caption = _describe(llm, tokens_NC, max_new_tokens)
        tell(f"caption of the picture: {caption!r}")
    return Report(facts, checks, caption)


@contextmanager
def _loaded(
    name: str, part: str, facts: dict[str, Any], tell: Callable[[str], None], *, device: str, dtype: torch.dtype
) -> Iterator[FrozenBackbone]:
    started = time.perf_counter()
    backbone = load_backbone(name, parts={part}, device=device, dtype=dtype)
    parameters = list(backbone.parameters())
    size = sum(p.numel() for p in parameters)
    facts |= {
        "adapter": type(backbone).__name__,
        f"{part}_tensors": len(parameters),
        f"{part}_parameters": size,
        f"{part}_bytes": sum(p.nbytes for p in parameters),
        f"{part}_load_s": round(time.perf_counter() - started, 2),
    }
    tell(f"{part}: {type(backbone).__name__}, {len(parameters)} tensors, {size / 1e6:.1f} M parameters")
    yield backbone
    # Else both parts would be in memory at once.
    backbone.to("meta")
    gc.collect()


# -- the vision side ---------------------------------------------------------------------------------------------------


def _vision_checks(backbone: FrozenBackbone, frames: np.ndarray) -> Iterator[Check]:
    together = backbone.encode_frames(frames, batch_size=len(frames))
    tokens_TNC, grid = together.tokens, together.grid
    shape = tuple(tokens_TNC.shape)
    yield Check("frame tokens are finite", bool(tokens_TNC.isfinite().all()), f"{shape} of {tokens_TNC.dtype}")
    yield Check("frame tokens are as wide as the LLM", shape[-1] == backbone.hidden_size, f"{shape[-1]} channels")
    yield Check("the grid holds all tokens", grid is None or math.prod(grid) == shape[1], f"{grid} of {shape[1]}")
    again = backbone.encode_frames(frames, batch_size=len(frames)).tokens
    yield Check("encoding twice gives equal tokens", torch.equal(again, tokens_TNC), "bit for bit")
    alone = torch.cat([backbone.encode_frames(frame[None], batch_size=1).tokens for frame in frames])
    yield _close("a frame alone gives the tokens it gives in a batch", alone, tokens_TNC)
    apart = float((tokens_TNC[0] - tokens_TNC[1]).abs().max() / tokens_TNC.abs().max())
    yield Check("other pictures give other tokens", apart > 1e-3, f"{apart:.2g} of the largest value apart")


# -- the LLM -----------------------------------------------------------------------------------------------------------


def _llm_checks(backbone: FrozenBackbone, tokens_NC: Tensor, of_shown: list[Tensor]) -> Iterator[Check]:
    messages = _question("what is in the image ?")
    prompt = backbone.prompt(messages)
    yield Check("a prompt has one slot for one image", len(prompt.segments) == 2, f"{len(prompt.segments) - 1}")
    rows = len(backbone.model.get_input_embeddings().weight)
    ids = [token_id for segment in prompt.segments for token_id in segment]
    yield Check("all ids of the prompt have an embedding", max(ids) < rows, f"largest id {max(ids)}, {rows} rows")
    answer = backbone.answer_ids(messages, "red")
    ends = any(token_id in backbone.stop_ids for token_id in answer)
    yield Check("an answer ends with a stop token", ends, f"{answer} against {backbone.stop_ids}")
    yield Check("an answer reads back", backbone.decode(answer) == "red", repr(backbone.decode(answer)))

    embeds_LC = _splice(backbone, messages, tokens_NC)
    logits_LV = _logits(backbone, embeds_LC)
    yield Check("logits are finite", bool(logits_LV.isfinite().all()), f"{tuple(logits_LV.shape)}")
    padding = torch.zeros(5, embeds_LC.shape[1], device=embeds_LC.device, dtype=embeds_LC.dtype)
    padded_LV = _logits(backbone, torch.cat([padding, embeds_LC]), num_padding=5)[5:]
    yield _close("padding on the left changes no logits", padded_LV, logits_LV)
    mask = torch.ones(1, len(embeds_LC), dtype=torch.bool, device=backbone.device)
    generated = backbone.generate(embeds_LC[None], mask, max_new_tokens=8)[0]
    greedy = _decode_greedily(backbone, embeds_LC, 8)
    # In half precision, two tokens may be equally likely.
    is_exact = backbone.dtype == torch.float32
    yield Check("generation is greedy decoding", generated == greedy, f"{generated} and {greedy}", not is_exact)
    targets = backbone.lora_targets()
    linears = {n for n, module in backbone.model.named_modules() if isinstance(module, torch.nn.Linear)}
    yield Check("LoRA has layers to adapt", bool(targets) and linears.issuperset(targets), f"{len(targets)} layers")

    nll, uniform = _nll(backbone, [], backbone.text_ids(_SENTENCE)), math.log(logits_LV.shape[-1])
    yield Check("plain English is likely", nll < 0.6 * uniform, f"{nll:.2f} nats a token, chance {uniform:.2f}", True)
    seen = [_named_color(backbone, tokens) for tokens in of_shown]
    yield Check("it names the colour of a circle", seen == [*_COLORS], f"{seen} of {[*_COLORS]}", True)


def _named_color(backbone: FrozenBackbone, tokens_NC: Tensor) -> str:
    messages = _question("what color is the circle ?")
    embeds_LC = _splice(backbone, messages, tokens_NC)
    nlls = [_nll(backbone, embeds_LC, backbone.answer_ids(messages, color)) for color in _COLORS]
    return _COLORS[int(np.argmin(nlls))]


def _describe(backbone: FrozenBackbone, tokens_NC: Tensor, max_new_tokens: int) -> str:
    embeds_LC = _splice(backbone, _question("describe the image ."), tokens_NC)
    mask = torch.ones(1, len(embeds_LC), dtype=torch.bool, device=backbone.device)
    return backbone.decode(backbone.generate(embeds_LC[None], mask, max_new_tokens=max_new_tokens)[0])


def _question(text: str) -> list[Message]:
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]


def _splice(backbone: FrozenBackbone, messages: list[Message], tokens_NC: Tensor) -> Tensor:
    """Embeddings [L, C] of the prompt with the frame's tokens in its slot."""
    prompt = backbone.prompt(messages)
    before, after = (backbone.embed(torch.tensor(s, device=backbone.device)) for s in (prompt.before, prompt.after))
    return torch.cat([before, tokens_NC.to(before), after])


@torch.no_grad()
def _logits(backbone: FrozenBackbone, embeds_LC: Tensor, *, num_padding: int = 0) -> Tensor:
    mask = torch.arange(len(embeds_LC), device=backbone.device)[None] >= num_padding
    return backbone.head(backbone.hidden_states(embeds_LC[None], mask))[0]


def _nll(backbone: FrozenBackbone, embeds_LC: Tensor | list[Tensor], ids: list[int]) -> float:
    """Mean negative log-likelihood in nats of `ids` behind `embeds`, or of all but the first where there are none."""
    targets = torch.tensor(ids, device=backbone.device)
    text_LC = backbone.embed(targets)
    before = len(embeds_LC)
    logits = _logits(backbone, torch.cat([embeds_LC, text_LC]) if isinstance(embeds_LC, Tensor) else text_LC)
    predicted = logits[before - 1 : -1] if before else logits[:-1]
    return float(F.cross_entropy(predicted.float(), targets if before else targets[1:]))


def _decode_greedily(backbone: FrozenBackbone, embeds_LC: Tensor, max_new_tokens: int) -> list[int]:
    ids: list[int] = []
    for _ in range(max_new_tokens):
        next_id = int(_logits(backbone, embeds_LC)[-1].argmax())
        if next_id in backbone.stop_ids:
            break
        ids.append(next_id)
        embeds_LC = torch.cat([embeds_LC, backbone.embed(torch.tensor([next_id], device=backbone.device))])
    return ids


def _close(name: str, actual: Tensor, expected: Tensor) -> Check:
    difference = float((actual.float() - expected.float()).abs().max() / expected.float().abs().max())
    return Check(name, difference <= _TOLERANCE[expected.dtype], f"{difference:.1e} of the largest value")


def _circle(color: str) -> np.ndarray:
    """uint8 [448, 448, 3]: a circle on white."""
    canvas = Image.new("RGB", (_SIDE, _SIDE), "white")
    ImageDraw.Draw(canvas).ellipse([_SIDE // 4, _SIDE // 4, 3 * _SIDE // 4, 3 * _SIDE // 4], fill=color)
    return np.asarray(canvas)
