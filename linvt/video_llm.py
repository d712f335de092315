"""A frozen (or LoRA-adapted) LLM that reads video tokens.

Shape legend: V videos, T frames, N tokens a frame, B sequences, Q visual tokens of a sequence, L sequence length,
C hidden size.
"""

import copy
import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import GenerationConfig

from linvt.backbones import Backbone, VisionOptions, load_backbone
from linvt.evidence import as_weights, frame_token_gains, integrated_gradients, over_frames
from linvt.lora import load_lora, save_lora
from linvt.losses import ContrastiveHead
from linvt.shards import CachedVideo
from linvt.training.batches import Batch, pad_ids, relative_times
from linvt.training.sequences import IGNORE_INDEX, TokenSequence
from linvt.video_tokenizer import LinVT, LinVTConfig, VideoSideCache, VideoTokens, build_video_tokenizer

FORMAT = "linvt-video-llm"


# No slots: DeepSpeed's ZeRO 3 looks into what a module returns by its __dict__.
@dataclass(frozen=True, kw_only=True)
class Output:
    """Sums, not means: only the caller knows how many answer tokens the other ranks hold."""

    answer_nll: Tensor
    """Summed over answer tokens."""
    answer_tokens: Tensor
    contrastive: Tensor | None
    """Mean over this rank's videos; None without captions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Moment:
    timestamp_s: float
    weight: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    text: str
    evidence: tuple[Moment, ...]
    """One entry a frame, in time; weights sum to 1."""
    weights: Tensor | None = None
    """[T, N], the weight of each frame token (`linvt.evidence`); None for an image, which goes past LinVT."""
    map: Tensor | None = None
    """[Q, T·N], the composed map W: `map @ frame_tokens` are the video tokens."""
    num_prompt_tokens: int = 0
    num_answer_tokens: int = 0


class VideoLLM(nn.Module):
    """`backbone` needs its "llm" part; with "vision" too it also serves raw frames."""

    def __init__(self, backbone: Backbone, video_tokenizer: nn.Module):
        super().__init__()
        config: Any = video_tokenizer.config
        if config.hidden_size != backbone.hidden_size:
            raise ValueError(
                f"the video tokenizer is for C = {config.hidden_size} channels, "
                f"{backbone.name} has C = {backbone.hidden_size}"
            )
        self.backbone = backbone
        self.video_tokenizer: Any = video_tokenizer
        self.contrastive: ContrastiveHead | None = None
        self.video_sides: VideoSideCache | None = None
        """Given one, `video_tokens` remembers what LinVT makes of a video alone; for weights that stay as they are."""

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    # -- training ---------------------------------------------------------------------------------------------------

    def forward(
        self,
        batch: Any,
        *,
        only: Literal["means", "contrastive"] | None = None,
        video_gradient: Tensor | None = None,
    ) -> Any:
        """Next-token loss on answers; with captions and a contrastive head, the alignment loss too: an `Output`.

        The alignment loss of a step in parts (`linvt.training.accumulation`): `only="means"` gives the means of a
        batch's video and caption tokens, both [V, C]. `only="contrastive"` takes (video means, caption means, ids [V])
        for `batch` and gives the loss. `video_gradient` [V, C] is its gradient by a batch's video means: then
        `Output.contrastive` is their product, whose gradient by the weights is the loss's.
        """
        if only == "means":
            return self._means(batch, self._encode_videos(batch))
        if only == "contrastive":
            assert self.contrastive is not None
            return self.contrastive(*batch)
        visual, contrastive = self._visual_tokens(batch, video_gradient)
        hidden_MC, labels_M = self._answer_states(batch.sequences, visual)
        logits_MV = self.backbone.head(hidden_MC).float()
        nll = F.cross_entropy(logits_MV, labels_M, reduction="sum")
        return Output(
            answer_nll=nll, answer_tokens=torch.tensor(len(labels_M), device=nll.device), contrastive=contrastive
        )

    def _visual_tokens(self, batch: Batch, video_gradient: Tensor | None) -> tuple[list[Tensor], Tensor | None]:
        visual: list[Tensor] = []
        contrastive = None
        count = batch.num_video_sequences
        if count:
            out = self._encode_videos(batch)
            visual += [tokens[mask] for tokens, mask in zip(out.tokens, out.mask)]
            if video_gradient is not None:
                contrastive = (self._video_means(batch, out) * video_gradient).sum()
            elif self.contrastive is not None and batch.captions.shape[1]:
                contrastive = self.contrastive(*self._means(batch, out), batch.video_ids)
        visual += [batch.images[i].to(self.backbone.dtype) for i in batch.media_index[count:].tolist()]
        return visual, contrastive

    def encode_instructions(
        self, tokens: Tensor, instructions: Tensor, instruction_mask: Tensor, **video: Any
    ) -> VideoTokens:
        """Video tokens for instruction ids [B, L]; see `LinVT.forward` for the rest."""
        text = self.backbone.embed(instructions)
        return self.video_tokenizer(tokens.to(self.backbone.dtype), text, text_mask=instruction_mask, **video)

    def _encode_videos(self, batch: Batch) -> VideoTokens:
        return self.encode_instructions(
            batch.tokens,
            batch.instructions,
            batch.instruction_mask,
            frame_mask=batch.frame_mask,
            times=batch.times,
            video_index=batch.media_index[: batch.num_video_sequences],
        )

    def _video_means(self, batch: Batch, out: VideoTokens) -> Tensor:
        """[V, C] of a batch's videos."""
        # The first sequence of each video stands for it.
        index_V = batch.media_index[: batch.num_video_sequences]
        first_V = torch.stack([(index_V == v).nonzero()[0, 0] for v in range(len(batch.tokens))])
        mask_VQ1 = out.mask[first_V][..., None].to(out.tokens.dtype)
        return (out.tokens[first_V] * mask_VQ1).sum(1) / mask_VQ1.sum(1)

    def _means(self, batch: Batch, out: VideoTokens) -> tuple[Tensor, Tensor]:
        """Means of a batch's video tokens, and of the LLM's states of its captions: [V, C] each."""
        video_VC = self._video_means(batch, out)
        with torch.no_grad():
            states_VLC = self.backbone.hidden_states(self.backbone.embed(batch.captions), batch.caption_mask)
            mask_VL1 = batch.caption_mask[..., None].to(states_VLC.dtype)
            caption_VC = (states_VLC * mask_VL1).sum(1) / mask_VL1.sum(1)
        return video_VC, caption_VC

    def _answer_states(self, sequences: Sequence[TokenSequence], visual: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Hidden states [M, C] that predict the M labelled tokens, and these labels [M]."""
        rows, labels = [], []
        for sequence, media_QC in zip(sequences, visual):
            rows.append(self._splice([sequence.before, sequence.after], [media_QC]))
            prefix = len(sequence.before) + len(media_QC)
            labels.append(torch.tensor([*[IGNORE_INDEX] * prefix, *sequence.labels]))
        embeds_BLC = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        labels_BL = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
        lengths_B = torch.tensor([len(row) for row in rows])
        mask_BL = (torch.arange(embeds_BLC.shape[1]) < lengths_B[:, None]).to(self.device)
        hidden_BLC = self.backbone.hidden_states(embeds_BLC, mask_BL)
        targets_BL = F.pad(labels_BL[:, 1:], (0, 1), value=IGNORE_INDEX).to(self.device)
        answered_BL = targets_BL != IGNORE_INDEX
        return hidden_BLC[answered_BL], targets_BL[answered_BL]

    def _splice(self, segments: Sequence[Sequence[int]], media: Sequence[Tensor]) -> Tensor:
        """[L, C]: text segments with media [Q, C] between them."""
        if len(segments) != len(media) + 1:
            raise ValueError(f"{len(media)} media need {len(media) + 1} text segments, got {len(segments)}")
        pieces: list[Tensor] = []
        for i, segment in enumerate(segments):
            pieces.append(self.backbone.embed(torch.tensor(segment, dtype=torch.long, device=self.device)))
            if i < len(media):
                pieces.append(media[i].to(pieces[0].dtype))
        return torch.cat(pieces)

    # -- answering --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def video_tokens(self, video: CachedVideo, instruction: str, *, return_map: bool = False) -> VideoTokens:
        """What the LLM gets to see of a video under an instruction: `VideoTokens` with B = 1."""
        ids, mask = pad_ids([self.backbone.text_ids(instruction)], self.backbone.pad_id)
        ids, mask = ids.to(self.device), mask.to(self.device)
        tokens, times = video.tokens[None], relative_times(video)[None]
        tokenizer = self.video_tokenizer
        if self.video_sides is None or not isinstance(tokenizer, LinVT):
            return self.encode_instructions(
                tokens.to(self.device), ids, mask, times=times.to(self.device), return_map=return_map
            )
        side = self.video_sides.get(
            video,
            lambda: tokenizer.encode_videos(tokens.to(self.device, self.backbone.dtype), times=times.to(self.device)),
        )
        return tokenizer.aggregate(side, self.backbone.embed(ids), mask, return_map=return_map)

    @torch.no_grad()
    def answer_batch(
        self, items: Sequence[tuple[CachedVideo, str]], *, max_new_tokens: int = 32, **sampling: Any
    ) -> list[str]:
        """Answers to (video or image, question) pairs, generated together."""
        prompts = [
            ([{"role": "user", "content": [{"type": media.kind}, {"type": "text", "text": question}]}], [media])
            for media, question in items
        ]
        ids = self.generate_batch(prompts, max_new_tokens=max_new_tokens, **sampling)
        return [self.backbone.decode(row) for row in ids]

    @torch.no_grad()
    def generate_batch(
        self,
        prompts: Sequence[tuple[Sequence[dict[str, Any]], Sequence[CachedVideo]]],
        *,
        max_new_tokens: int,
        **sampling: Any,
    ) -> list[list[int]]:
        """New token ids for conversations with media. Media parts and `media` go together in order.

        A video is tokenized under the text of the last user turn; images enter as they are; a part with kind "video"
        but raw frames can be given as several images.
        """
        rows = [self._prompt_embeds(messages, media) for messages, media in prompts]
        length = max(len(row) for row in rows)
        embeds = torch.stack([F.pad(row, (0, 0, length - len(row), 0)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(length) >= length - lengths[:, None]
        return self.backbone.generate(embeds, mask.to(self.device), max_new_tokens=max_new_tokens, **sampling)

    def _prompt_embeds(self, messages: Sequence[dict[str, Any]], media: Sequence[CachedVideo]) -> Tensor:
        instruction = instruction_of(messages)
        visual = [
            item.tokens[0].to(self.device)
            if item.kind == "image"
            else self._valid_tokens(self.video_tokens(item, instruction))
            for item in media
        ]
        return self._splice(self.backbone.prompt(messages).segments, visual)

    @staticmethod
    def _valid_tokens(out: VideoTokens) -> Tensor:
        return out.tokens[0][out.mask[0]]

    def answer(
        self, video: CachedVideo, question: str, *, max_new_tokens: int = 32, return_map: bool = False, **sampling: Any
    ) -> Answer:
        """Answers one question about a video, with the moments that the answer came from: see `linvt.evidence`."""
        messages = [{"role": "user", "content": [{"type": video.kind}, {"type": "text", "text": question}]}]
        (ids,) = self.generate_batch([(messages, [video])], max_new_tokens=max_new_tokens, **sampling)
        if video.kind == "image":
            tokens_QC, map_QS, weights_TN = video.tokens[0].to(self.device, self.backbone.dtype), None, None
            frames_T = [1.0]
        else:
            out = self.video_tokens(video, question, return_map=True)
            assert out.map is not None
            tokens_QC, map_QS = self._valid_tokens(out), out.map[0][out.mask[0]]
            gradients = integrated_gradients(lambda tokens: self.answer_log_probs(messages, [tokens], ids), tokens_QC)
            gains = frame_token_gains(gradients, tokens_QC, map_QS, video.tokens.to(self.device))
            weights_TN = as_weights(gains, map_QS)[0]
            frames_T = over_frames(weights_TN).tolist()
        return Answer(
            text=self.backbone.decode(ids),
            evidence=tuple(
                Moment(timestamp_s=float(time_s), weight=weight)
                for time_s, weight in zip(video.timestamps_s, frames_T, strict=True)
            ),
            weights=weights_TN,
            map=map_QS if return_map else None,
            num_prompt_tokens=sum(map(len, self.backbone.prompt(messages).segments)) + len(tokens_QC),
            num_answer_tokens=len(ids),
        )

    def answer_log_probs(
        self, messages: Sequence[dict[str, Any]], visual: Sequence[Tensor], answer_ids: Sequence[int]
    ) -> Tensor:
        """[R] in nats: the log-probability of every answer token given the conversation and those before it.

        `visual` are the tokens [Q, C] in the place of each medium, in order; gradients reach them.
        """
        *segments, last = self.backbone.prompt(messages).segments
        embeds_LC = self._splice([*segments, (*last, *answer_ids)], visual)
        mask_1L = torch.ones(1, len(embeds_LC), dtype=torch.bool, device=self.device)
        hidden_LC = self.backbone.hidden_states(embeds_LC[None], mask_1L)[0]
        log_probs_RV = self.backbone.head(hidden_LC[-len(answer_ids) - 1 : -1]).float().log_softmax(-1)
        ids_R = torch.tensor(answer_ids, dtype=torch.long, device=self.device)
        return log_probs_RV.gather(-1, ids_R[:, None])[:, 0]

    # -- artifacts --------------------------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path, *, extraction: dict[str, Any] | None = None) -> None:
        """Writes `config.json`, `linvt.safetensors`, `generation_config.json` and, with LoRA, `adapter/`. The image-LLM
        stays where it is.

        `extraction` records how the frames that this model was trained on were made. The configuration is written
        last and renamed into place: a directory without it is unfinished.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous() for name, tensor in self.video_tokenizer.state_dict().items()}
        save_file(state, directory / "linvt.safetensors", metadata={"format": "pt"})
        image_llm = self.backbone.model
        adapter = isinstance(image_llm, PeftModel)
        if adapter:
            save_lora(self.backbone, directory / "adapter")
        self._generation_config().save_pretrained(str(directory))
        config = {
            "format": FORMAT,
            "version": 1,
            "backbone": self.backbone.name,
            "video_tokenizer": dataclasses.asdict(self.video_tokenizer.config),
            "adapter": adapter,
            "extraction": extraction or {},
        }
        unfinished = directory / "config.json.tmp"
        with open(unfinished, "w") as file:
            file.write(json.dumps(config, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(directory / "config.json")

    def _generation_config(self) -> Any:
        """How this project answers: the image-LLM's own end of an answer, greedily."""
        image_llm: Any = self.backbone.model
        config = copy.deepcopy(image_llm.generation_config)
        config.eos_token_id, config.pad_token_id = self.backbone.stop_ids, self.backbone.pad_id
        config.do_sample, config.temperature, config.top_p, config.top_k = False, None, None, None
        return config

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        parts: Sequence[str] = ("vision", "llm"),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        backbone: str | None = None,
    ) -> "VideoLLM":
        """Brings a saved model back. `backbone` overrides where its image-LLM is found."""
        directory = Path(directory)
        config = read_model_config(directory)
        options = trained_vision_options(config)
        name = backbone or image_llm_of(directory, config)
        loaded = load_backbone(name, parts=parts, dtype=dtype, device=device, options=options)
        tokenizer_config = LinVTConfig.from_json(config["video_tokenizer"])
        if tokenizer_config.hidden_size != loaded.hidden_size:
            raise ValueError(
                f"{directory} was trained for C = {tokenizer_config.hidden_size}, "
                f"{loaded.name} has C = {loaded.hidden_size}"
            )
        generation_config = directory / "generation_config.json"
        if "llm" in parts and generation_config.is_file():
            image_llm: Any = loaded.model
            image_llm.generation_config = GenerationConfig.from_pretrained(str(directory))
        if config["adapter"]:
            load_lora(loaded, directory / "adapter")
        video_tokenizer = build_video_tokenizer(tokenizer_config)
        video_tokenizer.load_state_dict(load_file(directory / "linvt.safetensors"))
        model = cls(loaded, video_tokenizer.to(device=device, dtype=dtype))
        return model.eval().requires_grad_(False)


def read_model_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a saved model. Raises ValueError if there is none or it is another program's."""
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise ValueError(f"{directory}: no config.json; expected a directory that VideoLLM.save_pretrained wrote")
    config = json.loads(file.read_text())
    if config.get("format") != FORMAT or config.get("version") != 1:
        raise ValueError(
            f"{file}: format {config.get('format')!r} version {config.get('version')}, expected {FORMAT} 1"
        )
    return config


def image_llm_of(directory: Path, model_config: dict[str, Any]) -> str:
    """The image-LLM of a saved model, as `load_backbone` takes it; "./NAME" lies within `directory`."""
    name: str = model_config["backbone"]
    return str(directory / name) if name.startswith("./") else name


def trained_vision_options(model_config: dict[str, Any]) -> VisionOptions:
    """How the vision side stood that a saved model's frame tokens came from."""
    feature = model_config["extraction"].get("feature", {})
    return VisionOptions(**{f.name: feature[f.name] for f in dataclasses.fields(VisionOptions) if f.name in feature})


def instruction_of(messages: Sequence[dict[str, Any]]) -> str:
    """The text of the last user turn, which is what conditions the video tokens."""
    for message in reversed(messages):
        if message["role"] == "user":
            content = message["content"]
            if isinstance(content, str):
                return content
            return " ".join(part["text"] for part in content if part["type"] == "text")
    raise ValueError("the conversation has no user turn")
