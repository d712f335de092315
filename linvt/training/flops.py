"""How much arithmetic a training step is, whatever hardware does it."""

from typing import Any

from torch import nn

from linvt.training.batches import Batch


class FlopCounter:
    """Model FLOPs of a training step, counted as parameters times tokens; what padding costs is not counted.

    A token through P parameters costs 2P FLOPs forward, 2P for the gradient of its activations and 2P for the gradient
    of the weights. With the frozen LLM (P_llm decoder parameters, P_head in the head, P_lora in adapters), the refiner
    (P_svr), the aggregator (P_tta), n sequence tokens, a answer tokens, c caption tokens of the contrastive loss,
    f frame tokens and q video tokens:

        2·P_llm·(n + c) + 2·P_head·a            frozen forward
      + 2·P_llm·n + 2·P_head·a                  frozen activation gradients
      + 6·P_lora·n + 6·P_svr·f + 6·P_tta·q      what trains: forward, activation and weight gradients

    Left out: attention's products of length by length, the aggregator's keys, and recomputation under gradient
    checkpointing. The MFU that follows is therefore on the low side.
    """

    def __init__(self, model: Any) -> None:
        backbone, video_tokenizer = model.backbone, model.video_tokenizer
        lora = {id(p) for p in backbone.parameters() if p.requires_grad}
        decoder = _base_model(backbone.model).get_decoder()
        embeddings = {id(p) for p in _base_model(backbone.model).get_input_embeddings().parameters()}
        self.llm = _count(decoder, excluded=lora | embeddings)
        self.head = _count(_base_model(backbone.model).get_output_embeddings())
        self.lora = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
        self.refiner = _count(getattr(video_tokenizer, "refiner", None))
        self.aggregator = _count(getattr(video_tokenizer, "aggregator", None))
        is_average = video_tokenizer.config.kind == "avg"
        self.num_video_tokens: int | None = None if is_average else video_tokenizer.config.num_video_tokens

    def sequence_tokens(self, batch: Batch) -> int:
        """n: text and visual tokens of all sequences, without padding."""
        text = sum(len(sequence.before) + len(sequence.after) for sequence in batch.sequences)
        images = sum(len(batch.images[i]) for i in batch.media_index[batch.num_video_sequences :].tolist())
        return text + images + self._video_tokens(batch)

    def flops(self, batch: Batch, *, answer_tokens: int) -> float:
        n = self.sequence_tokens(batch)
        frame_tokens = int(batch.frame_mask.sum()) * batch.tokens.shape[2]
        frozen = self.llm * (4 * n + 2 * int(batch.caption_mask.sum())) + 4 * self.head * answer_tokens
        trained = self.lora * n + self.refiner * frame_tokens + self.aggregator * self._video_tokens(batch)
        return float(frozen + 6 * trained)

    def _video_tokens(self, batch: Batch) -> int:
        """q: of all video sequences; the *Avg* baseline has one a frame."""
        if self.num_video_tokens is not None:
            return self.num_video_tokens * batch.num_video_sequences
        return int(batch.frame_mask.sum(-1)[batch.media_index[: batch.num_video_sequences]].sum())


def _base_model(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _count(module: nn.Module | None, excluded: frozenset[int] | set[int] = frozenset()) -> int:
    return sum(p.numel() for p in module.parameters() if id(p) not in excluded) if module is not None else 0
