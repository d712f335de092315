"""The shape of a video tokenizer. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class LinVTConfig:
    """Defaults are the paper's (sec. 4.1, Tables 3-5), except where a field says that it is our addition."""

    hidden_size: int
    """C, the LLM's hidden size. Must be a multiple of `num_heads`."""
    kind: Literal["linvt", "avg"] = "linvt"
    """`avg` is the paper's *Avg* baseline (Table 2): one mean token per frame, nothing to learn."""
    top_k: int = 2048
    """Tokens that the refiner keeps of a video; fewer valid tokens are all kept."""
    num_queries: tuple[int, ...] = (64, 32, 16)
    """Video tokens per scale."""
    windows: tuple[int, ...] = (1, 2, 4)
    """Pooling window of each scale, in selected tokens; windows overlap by half."""
    num_layers: int = 4
    """L, of the refiner and of the aggregator alike."""
    num_heads: int = 8
    text_condition: bool = True
    """Whether the queries attend to the instruction (TTA's cross-attention to text)."""
    scorer_gradient: Literal["log_bias", "none"] = "log_bias"
    """How the refiner's scores reach the loss. `none` is the paper's text read literally: hard top-k and no gradient.
    `log_bias`, our addition, weights pooling by the score and adds its logarithm to the aggregation logits."""
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
        if self.word_matched_start and not self.text_condition:
            raise ValueError("word_matched_start needs text_condition: without text there are no words to match")
        if len(self.num_queries) != len(self.windows):
            raise ValueError(f"num_queries {self.num_queries} and windows {self.windows} must have one entry per scale")
        if min(self.top_k, self.num_layers, *self.num_queries, *self.windows) < 1:
            raise ValueError(f"top_k, num_layers, num_queries and windows must be positive, got {self}")

    @property
    def num_video_tokens(self) -> int:
        return sum(self.num_queries)
