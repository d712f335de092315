"""The shape of a video tokenizer. Imports no torch."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class LinVTConfig:
    """Defaults are the paper's (sec. 4.1, Tables 3-5), except where a field says that it is our addition."""

    hidden_size: int
    """C, the LLM's hidden size. Must be a multiple of `num_heads`."""
    kind: Literal["linvt", "svr", "tta", "avg"] = "linvt"
    """The rows of the paper's Table 2. `linvt`: both modules. `svr`: the refiner alone, with averages of its selection
    in place of TTA. `tta`: the aggregator alone, over all tokens. `avg`: one mean token per frame, nothing to learn."""
    top_k: int = 2048
    """Tokens that the refiner keeps of a video; fewer valid tokens are all kept."""
    num_queries: tuple[int, ...] = (64, 32, 16)
    """Video tokens per scale."""
    windows: tuple[int, ...] = (1, 2, 4)
    """Pooling window of each scale, in selected tokens; windows overlap by half."""
    multi_scale: Literal["single", "A", "B", "C"] = "C"
    """The rows of the paper's Table 4, with as many video tokens each. `single` (Single-A): all queries read the
    unpooled selection. `A`: the first scale's queries do, and their video tokens are pooled afterwards. `B`: all
    queries read all scales at once. `C`: each scale's queries read that scale."""
    num_layers: int = 4
    """L, of the refiner and of the aggregator alike."""
    num_heads: int = 8
    text_condition: bool = True
    """Whether the queries attend to the instruction (TTA's cross-attention to text)."""
    refiner_width: int | None = None
    """Our addition: channels of the stream that scores tokens; None is C, as in the paper. Must be a multiple of
    `num_heads`. Tokens pass the refiner untouched at any width."""
    scorer_gradient: Literal["log_bias", "straight_through", "none"] = "log_bias"
    """How the refiner's scores reach the loss. `none` is the paper's text read literally: hard top-k and no gradient.
    `log_bias`, our addition, weights pooling by the score and adds its logarithm to the aggregation logits.
    `straight_through` computes what `none` does, with the gradient of `log_bias` at a weight of one."""
    gumbel_noise: float = 0.0
    """Our addition: in training, tokens are selected by score plus this much Gumbel noise, so that tokens just below
    the top k are tried too."""
    time_in_keys: bool = True
    """Our addition: keys and queries carry a time encoding, values never do."""
    time_anchored_queries: bool = True
    """Our addition: query i of a scale of q prefers tokens around time (i + 1/2) / q, with a learned width."""
    word_matched_start: bool = False
    """Our addition, a start and no constraint: an untrained LinVT prefers tokens that resemble the embeddings of the
    instruction's words. For image-LLMs whose projector puts what is seen near the words for it."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if (self.refiner_width or self.num_heads) % self.num_heads:
            raise ValueError(f"refiner_width {self.refiner_width} is not a multiple of num_heads {self.num_heads}")
        if self.gumbel_noise < 0:
            raise ValueError(f"gumbel_noise must not be negative, got {self.gumbel_noise}")
        if self.multi_scale == "A" and any(self.num_queries[0] % q for q in self.num_queries):
            raise ValueError(
                f'multi_scale "A" averages the video tokens of the first scale in equal runs: num_queries '
                f"{self.num_queries} must all divide {self.num_queries[0]}"
            )
        if self.word_matched_start and not self.text_condition:
            raise ValueError("word_matched_start needs text_condition: without text there are no words to match")
        if len(self.num_queries) != len(self.windows):
            raise ValueError(f"num_queries {self.num_queries} and windows {self.windows} must have one entry per scale")
        if min(self.top_k, self.num_layers, self.refiner_width or 1, *self.num_queries, *self.windows) < 1:
            raise ValueError(f"top_k, num_layers, refiner_width, num_queries and windows must be positive, got {self}")

    @property
    def num_video_tokens(self) -> int:
        return sum(self.num_queries)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "LinVTConfig":
        """From a parsed JSON object, which has no tuples. Fields that are missing are at their defaults.

        Raises ValueError for fields that this version does not know.
        """
        unknown = sorted(set(fields) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"unknown fields of a LinVT configuration: {unknown}; was it written by a newer version?")
        typed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**typed)
