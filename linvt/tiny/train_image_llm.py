"""Trains the tiny image-LLM from scratch on rendered scenes (docs/tiny.md).

Two things make it learn within an hour on a laptop. Dense supervision: every image carries a caption and many
questions in one sequence, each behind a mask that shows it the image and itself only, so training sees exactly the
sequences that answering will. And an auxiliary loss on every patch (what lies under it?), whose head is thrown away,
in the place of the image-text pre-training that a published vision tower has behind it.

Shape legend: B images, N patches, L sequence length, C hidden size, K questions.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.models.llava import LlavaForConditionalGeneration

from linvt.tiny import image_llm
from linvt.tiny.image_llm_config import ImageLLMTrainConfig
from linvt.tiny.image_questions import ask, caption
from linvt.tiny.scene import COLORS, NEEDLE_SHAPE, SHAPES, SIZES, Scene, random_scene, render
from linvt.tiny.vocabulary import WORDS

logger = logging.getLogger(__name__)

RENDER_SIZE_PX = 128
IGNORE = -100
_GRID = image_llm.IMAGE_SIZE_PX // image_llm.PATCH_SIZE_PX
# What the auxiliary head tells of each patch: shape (or needle, or nothing), color, size, row, column.
PATCH_CLASSES = (len(SHAPES) + 2, len(COLORS), len(SIZES), _GRID, _GRID)


@dataclass(slots=True)
class PackedImage:
    """One image and its blocks of text. Block 0 is `<|user|>` + the image, which every other block sees."""

    pixels: np.ndarray  # [3, H, W] float32
    ids: np.ndarray  # [L] int64
    labels: np.ndarray  # [L] int64: the next token where it is part of an answer, IGNORE elsewhere
    blocks: np.ndarray  # [L] int64
    positions: np.ndarray  # [L] int64
    patch_labels: np.ndarray  # [N, 5] int64: shape, color, size, row, column; IGNORE for color and size of nothing
    word_labels: np.ndarray  # [N, 4] int64: ids of the words for place, color, shape, size; IGNORE where there is none
    mixing: np.ndarray  # [N, N] float32: the LLM reads `mixing @ patch tokens`


class RenderedImages(IterableDataset):
    """An endless stream of packed batches, a pure function of (seed, step)."""

    def __init__(self, config: ImageLLMTrainConfig):
        self.config = config
        self.packer = Packer()

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for step in range(self.config.steps):
            rng = np.random.default_rng([self.config.seed, 1, step])
            items = [
                self.packer.pack(random_scene(rng), rng, self.config.questions_per_image, self.config.unordered_share)
                for _ in range(self.config.batch_size)
            ]
            yield collate(items)


class Packer:
    def __init__(self) -> None:
        self.processor = image_llm.build_processor()
        tokenizer = self.processor.tokenizer
        self.vocabulary = tokenizer.get_vocab()
        self.user, self.assistant, self.end, self.image = (
            self.vocabulary[token] for token in ("<|user|>", "<|assistant|>", "<|end|>", "<image>")
        )
        self.grid = _GRID

    def encode(self, text: str) -> list[int]:
        return [self.vocabulary[word] for word in text.split()]

    def pack(self, scene: Scene, rng: np.random.Generator, questions: int, unordered_share: float = 0.0) -> PackedImage:
        prefix = [self.user] + [self.image] * self.grid**2
        ids, labels = list(prefix), [IGNORE] * len(prefix)
        blocks, positions = [0] * len(prefix), list(range(len(prefix)))
        words = [str(word) for word in rng.choice(WORDS, size=rng.integers(2, 7))]
        pairs = [(question.text, question.answer) for question in ask(scene, rng, questions)]
        pairs.append((f"describe the {rng.choice(('picture', 'video'))}", caption(scene)))
        pairs.append(("repeat : " + " ".join(words), " ".join(words)))
        for block, (question, answer) in enumerate(pairs, start=1):
            question_ids = [*self.encode(question), self.assistant]
            answer_ids = [*self.encode(answer), self.end]
            block_ids = question_ids + answer_ids
            # Now and then the text stands further from the image, so that longer visual prefixes are no surprise.
            start = len(prefix) + (int(rng.integers(0, 320)) if rng.random() < 0.3 else 0)
            ids += block_ids
            labels += [IGNORE] * (len(question_ids) - 1) + answer_ids + [IGNORE]
            blocks += [block] * len(block_ids)
            positions += range(start, start + len(block_ids))
        image = augment(render(scene, RENDER_SIZE_PX), rng)
        pixels = self.processor.image_processor(images=[image], return_tensors="np")["pixel_values"][0]
        patch_labels = self.patch_labels(scene)
        return PackedImage(
            pixels=pixels,
            ids=np.array(ids),
            labels=np.array(labels),
            blocks=np.array(blocks),
            positions=np.array(positions),
            patch_labels=patch_labels,
            word_labels=self.word_labels(scene, patch_labels),
            mixing=random_mixing(self.grid**2, rng) if rng.random() < unordered_share else np.eye(self.grid**2),
        )

    def word_labels(self, scene: Scene, patch_labels: np.ndarray) -> np.ndarray:
        """Of the words that name what lies under a patch."""
        labels = np.full((self.grid**2, 4), IGNORE, np.int64)
        labels[:, 0] = self.vocabulary[scene.place]
        for i, (shape, color, size) in enumerate(patch_labels[:, :3].tolist()):
            if color != IGNORE:
                words = (list(COLORS)[color], (*SHAPES, NEEDLE_SHAPE)[shape], list(SIZES)[size])
                labels[i, 1:] = [self.vocabulary[word] for word in words]
        return labels

    def patch_labels(self, scene: Scene) -> np.ndarray:
        labels = np.full((self.grid**2, len(PATCH_CLASSES)), IGNORE, np.int64)
        labels[:, 0] = len(SHAPES) + 1
        # A token must say where it lies: rotary positions are lost once tokens are averaged.
        labels[:, 3:] = np.indices((self.grid, self.grid)).reshape(2, -1).T
        centers = (np.arange(self.grid) + 0.5) / self.grid
        for thing in scene.things:
            dx, dy = centers[None, :] - thing.x, centers[:, None] - thing.y
            distance = np.hypot(dx, dy).ravel()
            # The patch that holds the centre, and every patch whose own centre the object covers.
            covered = distance < thing.radius
            covered[int(thing.y * self.grid) * self.grid + int(thing.x * self.grid)] = True
            labels[covered, :3] = (
                (*SHAPES, NEEDLE_SHAPE).index(thing.shape),
                list(COLORS).index(thing.color),
                list(SIZES).index(thing.size),
            )
        return labels


def random_mixing(count: int, rng: np.random.Generator) -> np.ndarray:
    """[N, N], rows sum to 1: every token once, in random order, with up to a quarter of each of two others added."""
    share = rng.uniform(0, 0.5)
    kept, *added = (np.eye(count)[rng.permutation(count)] for _ in range(3))
    return (1 - share) * kept + share / 2 * (added[0] + added[1])


def augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a camera and a video codec do: another resolution, noise, a little less light."""
    if rng.random() < 0.5:
        side = int(rng.integers(72, RENDER_SIZE_PX))
        shrunk = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
        image = np.asarray(shrunk.resize((RENDER_SIZE_PX, RENDER_SIZE_PX), Image.Resampling.BILINEAR))
    gain = rng.uniform(0.92, 1.08)
    return np.clip(image * gain + rng.normal(0, 3, size=image.shape[:2])[..., None], 0, 255).astype(np.uint8)


def collate(items: list[PackedImage]) -> dict[str, Tensor]:
    """Right-pads to the longest sequence. The mask is additive, [B, 1, L, L]."""
    length = max(len(item.ids) for item in items)

    def pad(arrays: list[np.ndarray], value: int) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(a, (0, length - len(a)), constant_values=value) for a in arrays]))

    blocks = pad([item.blocks for item in items], -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = blocks[:, :, None] == blocks[:, None, :]
    allowed = causal & (same | (blocks[:, None, :] == 0))
    return {
        "pixels": torch.from_numpy(np.stack([item.pixels for item in items])),
        "ids": pad([item.ids for item in items], 0),
        "labels": pad([item.labels for item in items], IGNORE),
        "positions": pad([item.positions for item in items], 0),
        "mask": torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))[:, None],
        "patch_labels": torch.from_numpy(np.stack([item.patch_labels for item in items])),
        "word_labels": torch.from_numpy(np.stack([item.word_labels for item in items])),
        "mixing": torch.from_numpy(np.stack([item.mixing for item in items]).astype(np.float32)),
    }


def losses(model: Any, patch_head: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(next-token cross-entropy over answers, per-patch cross-entropy, cross-entropy of patches' words)."""
    features_NC = model.model.get_image_features(batch["pixels"], return_dict=True).pooler_output
    features_BNC = torch.stack(list(features_NC)) if isinstance(features_NC, list | tuple) else features_NC
    features_BNC = features_BNC.reshape(len(batch["pixels"]), -1, features_BNC.shape[-1])
    patch_loss = torch.stack(
        [
            F.cross_entropy(logits.flatten(0, 1), batch["patch_labels"][..., i].flatten(), ignore_index=IGNORE)
            for i, logits in enumerate(patch_head(features_BNC).split(PATCH_CLASSES, dim=-1))
        ]
    ).sum()
    words_WC = model.get_input_embeddings().weight
    # What an attention layer with unit weights would compute: so the loss shapes what such a layer finds.
    likeness_BNW = _normed(features_BNC) @ _normed(words_WC).T * words_WC.shape[-1] ** -0.5
    word_labels_BN4 = batch["word_labels"]
    named_BN4 = word_labels_BN4 != IGNORE
    likelihood_BN4 = likeness_BNW.log_softmax(-1).gather(-1, word_labels_BN4.clamp(min=0))
    word_loss = -likelihood_BN4[named_BN4].mean()
    embeds_BLC = model.get_input_embeddings()(batch["ids"])
    patches = features_BNC.shape[1]
    read_BNC = (batch["mixing"] @ features_BNC).to(embeds_BLC)
    embeds_BLC = torch.cat([embeds_BLC[:, :1], read_BNC, embeds_BLC[:, 1 + patches :]], dim=1)
    hidden_BLC = model.model.language_model(
        inputs_embeds=embeds_BLC, position_ids=batch["positions"], attention_mask=batch["mask"], use_cache=False
    ).last_hidden_state
    answered = batch["labels"] != IGNORE
    answer_loss = F.cross_entropy(model.lm_head(hidden_BLC[answered]), batch["labels"][answered])
    return answer_loss, patch_loss, word_loss


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])


def train(config: ImageLLMTrainConfig) -> dict:
    """Trains, evaluates, writes the directory; returns scores. Deterministic for a seed and a thread count."""
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.threads)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    packer = Packer()
    if config.init_from is None:
        model = image_llm.build_model(packer.processor.tokenizer)
    else:
        model = LlavaForConditionalGeneration.from_pretrained(config.init_from)
    if config.freeze_vision:
        model.model.vision_tower.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(False)
    patch_head = nn.Linear(image_llm.HIDDEN_SIZE, sum(PATCH_CLASSES))
    # Muon for the matrices inside the transformers, AdamW for embeddings, heads, norms and biases.
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    inner = {n for n, p in named.items() if p.ndim == 2 and "layers" in n}
    optimizers = [
        torch.optim.Muon(
            [named[n] for n in sorted(inner)],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(
            [p for n, p in named.items() if n not in inner] + list(patch_head.parameters()),
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=config.weight_decay,
        ),
    ]
    start, history = time.monotonic(), []
    loader = DataLoader(RenderedImages(config), batch_size=None, num_workers=1, prefetch_factor=4)
    model.train()
    for step, batch in enumerate(loader, start=1):
        scale = learning_rate_scale(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * scale
        answer_loss, patch_loss, word_loss = losses(model, patch_head, batch)
        loss = answer_loss + config.word_loss_weight * word_loss
        if not config.freeze_vision:
            loss = loss + config.patch_loss_weight * patch_loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if step % config.log_every == 0:
            row = {"step": step, "answer_loss": answer_loss.item(), "patch_loss": patch_loss.item()}
            row["word_loss"] = word_loss.item()
            history.append({**row, "seconds": round(time.monotonic() - start, 1)})
            logger.info("%s", json.dumps(history[-1]))
        if step % config.eval_every == 0 or step == config.steps:
            scores = evaluate(model, packer, images=config.eval_images, seed=config.seed + 10_000)
            logger.info("step %d held-out accuracy %s", step, json.dumps(scores))
            image_llm.save(model, packer.processor, out)
            model.train()
    seconds = time.monotonic() - start
    scores = evaluate(model, packer, images=1000, seed=config.seed + 20_000)
    unordered = evaluate(model, packer, images=1000, seed=config.seed + 20_000, shuffled=True)
    result = {
        "held_out_accuracy": scores,
        "held_out_accuracy_patches_shuffled": unordered,
        "seconds": round(seconds),
        "config": dataclasses.asdict(config),
    }
    (out / config.log_name).write_text(json.dumps({**result, "history": history}, indent=1) + "\n")
    return result


def learning_rate_scale(step: int, config: ImageLLMTrainConfig) -> float:
    """Linear warm-up, then cosine to 2%."""
    if step < config.warmup_steps:
        return step / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def evaluate(
    model: Any, packer: Packer, *, images: int, seed: int, questions_per_image: int = 8, shuffled: bool = False
) -> dict[str, float]:
    """Exact-match accuracy per family on scenes of another seed; every answer token must be the greedy one.

    Teacher forcing is exact here: an answer counts only if each of its tokens, and the end, is the most likely
    one after the right prefix, which is when greedy decoding would have written it. With `shuffled` the LLM gets the
    patches' tokens in random order.
    """
    model.eval()
    rng, order = np.random.default_rng([seed, 2]), np.random.default_rng([seed, 3])
    right: dict[str, list[bool]] = {}
    for _ in range(images):
        scene = random_scene(rng)
        questions = ask(scene, rng, questions_per_image)
        pixels = packer.processor.image_processor(images=[render(scene, RENDER_SIZE_PX)], return_tensors="pt")
        features = model.model.get_image_features(pixels["pixel_values"], return_dict=True).pooler_output
        features_NC = (features[0] if isinstance(features, list | tuple) else features).reshape(
            -1, image_llm.HIDDEN_SIZE
        )
        if shuffled:
            features_NC = features_NC[torch.from_numpy(order.permutation(len(features_NC)))]
        rows = []
        for question in questions:
            rows.append(
                ([*packer.encode(question.text), packer.assistant], [*packer.encode(question.answer), packer.end])
            )
        length = max(len(q) + len(a) for q, a in rows)
        ids = torch.tensor([(q + a + [0] * length)[:length] for q, a in rows])
        embed = model.get_input_embeddings()
        prefix = torch.cat([embed(torch.tensor([packer.user])), features_NC]).expand(len(rows), -1, -1)
        logits = model.lm_head(
            model.model.language_model(
                inputs_embeds=torch.cat([prefix, embed(ids)], dim=1), use_cache=False
            ).last_hidden_state
        ).argmax(-1)
        for i, (question, (q, a)) in enumerate(zip(questions, rows)):
            at = prefix.shape[1] + len(q) - 1
            right.setdefault(question.family, []).append(logits[i, at : at + len(a)].tolist() == a)
    scores = {family: round(sum(hits) / len(hits), 4) for family, hits in sorted(right.items())}
    total = [hit for hits in right.values() for hit in hits]
    return {"overall": round(sum(total) / len(total), 4), **scores}
