"""What a training run is: every choice that its result depends on, and the few that it doesn't."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

SAME_ON_RESUME = (
    "stage",
    "cache",
    "annotations",
    "format",
    "media_prefix",
    "mixture_weights",
    "conversation_instruction",
    "length_grouping",
    "backbone",
    "init_from",
    "linvt_kind",
    "linvt_top_k",
    "linvt_num_queries",
    "linvt_windows",
    "linvt_multi_scale",
    "linvt_num_layers",
    "linvt_num_heads",
    "linvt_text_condition",
    "linvt_refiner_width",
    "linvt_scorer_gradient",
    "linvt_gumbel_noise",
    "linvt_time_in_keys",
    "linvt_time_anchored_queries",
    "linvt_word_matched_start",
    "visits_per_batch",
    "turns_per_visit",
    "window_shards",
    "steps",
    "epochs",
    "learning_rate",
    "min_learning_rate",
    "warmup_steps",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "clip_grad_norm",
    "contrastive_weight",
    "lora_rank",
    "lora_alpha",
    "lora_dropout",
    "seed",
    "precision",
    "ema_decay",
)
"""The fields that a resumed run must share with the run it continues; the others may change in between."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """Train LinVT (stage 1), or LinVT and LoRA adapters on the LLM (stage 2), from a cache of frozen frame tokens."""

    stage: Literal[1, 2]
    """1 aligns: LinVT learns from captions (cross-entropy + contrastive loss), the LLM stays frozen. 2 tunes: LinVT and
    LoRA adapters on the LLM's linear layers learn from questions and answers."""
    cache: str
    """The folder that jobs/extract_features.py wrote (its --out)."""
    annotations: tuple[str, ...]
    """One or more annotation files, as published; see docs/datasets.md."""
    format: tuple[str, ...] = ("linvt",)
    """The annotations' format, one for all files or one for each: linvt, a published set's (docs/datasets.md), or auto,
    which tells a file's by its rows. Of conversations, llava and sharegptvideo hold questions; llava-caption and
    sharegptvideo-caption are those of one turn whose answers are captions."""
    media_prefix: tuple[str, ...] = ("",)
    """Put before every media name of the annotations to make it the cache's video id, e.g. "videos/"; one for all files
    or one for each."""
    mixture_weights: tuple[float, ...] = ()
    """How often an epoch visits each sample of a file: 1 once, 2 twice, 0.5 half of them, the other half in the next
    epoch. One for all files or one for each; if not given, 1."""
    backbone: str
    """The image-LLM, which the cache was made with: "tiny" (the embedded one), a directory or a hub id ORG/NAME."""
    out: str
    """The run's folder, on a path that every worker reaches: checkpoints, metrics, plots and the final model."""
    init_from: str | None = None
    """A model folder (OUT/model of an earlier run) to start from: stage 2 usually starts from stage 1's."""
    on_existing: Literal["resume", "overwrite", "fail"] = "fail"
    """What to do where OUT already holds a run."""

    # How much
    steps: int | None = None
    """Optimizer steps to take; if not given, --epochs decides."""
    epochs: float = 1.0
    """Passes over the training samples, rounded up to whole steps."""
    visits_per_batch: int = 32
    """Samples of one optimizer step over all workers; a sample is one visit to a video with some of its questions."""
    micro_batch: int | None = None
    """Most samples of one forward pass of a worker: its share of a step is then run in parts, which takes less memory
    and gives the same step up to rounding; the contrastive loss still compares all videos of the step."""
    turns_per_visit: int = 5
    """Most question-answer pairs of one visit (stage 2); a video with more of them is visited more often per epoch."""
    window_shards: int = 16
    """Neighbouring shards (in an epoch's random order of shards) whose samples are shuffled together."""
    length_grouping: Literal["frames", "frames-text", "none"] = "frames"
    """What samples of one batch are alike in, so that it pads little: their number of frames; that, and the length of
    their text among videos of as many frames; or nothing."""
    conversation_instruction: Literal["first", "each"] = "first"
    """Of a conversation of several turns: first makes one sequence of it, its video tokens made under the first
    question; each asks every question in a sequence of its own, behind those before it, under its own video tokens."""
    max_left_out_share: float = 0.0
    """Share of annotated media that may be left out: not in the cache, or without what the stage learns from (captions,
    or questions). OUT/left_out.jsonl lists them; a larger share is an error. Images in stage 1 don't count."""

    # The video tokenizer; with --init-from it is the one found there, and these must be left alone
    linvt_kind: Literal["linvt", "svr", "tta", "avg"] = "linvt"
    """linvt, or another row of the paper's Table 2: svr and tta are one of its modules alone, avg is one mean token per
    frame, with nothing to learn."""
    linvt_top_k: int = 2048
    """Frame tokens that the refiner keeps of a video; fewer valid tokens are all kept."""
    linvt_num_queries: tuple[int, ...] = (64, 32, 16)
    """Video tokens per scale."""
    linvt_windows: tuple[int, ...] = (1, 2, 4)
    """Pooling window of each scale, in selected tokens."""
    linvt_multi_scale: Literal["single", "A", "B", "C"] = "C"
    """How scales are read, as in the paper's Table 4: single (none), A (pooled after TTA), B (all at once), C (each
    apart)."""
    linvt_num_layers: int = 4
    """Layers of the refiner and of the aggregator."""
    linvt_num_heads: int = 8
    """Attention heads; they divide the backbone's hidden size."""
    linvt_text_condition: bool = True
    """Whether the queries attend to the instruction."""
    linvt_refiner_width: int | None = None
    """Our addition: channels of the stream that scores tokens; if not given, the backbone's."""
    linvt_scorer_gradient: Literal["log_bias", "straight_through", "none"] = "log_bias"
    """How the refiner's scores reach the loss: log_bias and straight_through are our additions, none is the paper's
    text read literally."""
    linvt_gumbel_noise: float = 0.0
    """Our addition: Gumbel noise on the scores by which tokens are selected, in training only."""
    linvt_time_in_keys: bool = True
    """Our addition: keys and queries carry a time encoding; values never do."""
    linvt_time_anchored_queries: bool = True
    """Our addition: the queries of a scale are spread over the video's time."""
    linvt_word_matched_start: bool = False
    """Our addition: start from preferring tokens that resemble the instruction's words; for image-LLMs whose projector
    puts what is seen near the words for it."""

    # How
    learning_rate: float = 1e-4
    """Peak learning rate, reached after the warm-up."""
    min_learning_rate: float = 0.0
    """Where the cosine ends."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, on matrices only: not on biases, norms and scalars."""
    adam_beta1: float = 0.9
    """AdamW's decay of the gradient's running mean."""
    adam_beta2: float = 0.999
    """AdamW's decay of the squared gradient's running mean."""
    clip_grad_norm: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss beside the caption's cross-entropy (stage 1); 0 turns it off."""
    lora_rank: int = 16
    """Rank of the LoRA adapters (stage 2)."""
    lora_alpha: float = 32.0
    """LoRA's scale: the update is multiplied by alpha / rank."""
    lora_dropout: float = 0.0
    """Dropout on the input of the LoRA adapters."""
    seed: int = 0
    """Decides the initial weights, the order of samples and dropout."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 keeps fp32 master weights in the optimizer and needs --zero-stage 1, 2 or 3."""
    ema_decay: float = 0.0
    """Above 0, an average of the trained weights is kept (each step: decay · average + (1 - decay) · weights, the decay
    growing to this), and it is what is validated and saved as a model; e.g. 0.999. 0: none."""
    gradient_checkpointing: bool = False
    """Recompute the frozen LLM's activations in the backward pass: less memory, about a third more time."""

    # Where
    num_workers: str = "1"
    """Training workers: N; MIN:MAX for an elastic run that goes on with what the cluster has; 0: this process, without
    Ray (or, started by torchrun, one of its workers)."""
    use_gpu: bool = False
    """Give each worker one GPU."""
    threads_per_worker: int = 1
    """CPU threads (and Ray CPUs) of a worker. Fixed, because it decides the last bits of a sum."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO: 0 copies everything; 1 splits the optimizer's states over the workers, 2 gradients too, 3 weights
    too."""
    max_failures: int = 2
    """How often a run recovers by itself from a lost worker, from its latest checkpoint."""
    prefetch_batches: int = 4
    """Batches that a background thread reads and collates ahead."""

    # What is kept and told
    save_every: int = 500
    """Steps between checkpoints; the last one is always written."""
    log_every: int = 10
    """Steps between lines of OUT/metrics.jsonl."""
    eval_annotations: tuple[str, ...] = ()
    """Annotation files of held-out samples, over the same cache; none: no validation."""
    eval_format: tuple[str, ...] = ()
    """Their format, one for all or one for each; if not given, --format's where that is one, else auto."""
    eval_media_prefix: tuple[str, ...] = ()
    """Their media prefix; if not given, --media-prefix's where that is one, else none."""
    eval_cache: str | None = None
    """The cache of the held-out samples, if it is another one."""
    eval_every: int = 500
    """Steps between validations; the last step is always validated."""
    eval_visits: int = 256
    """Most held-out visits of a validation."""
    eval_answers: int = 64
    """Most held-out questions answered by generation in a validation (stage 2)."""
    best_by: Literal["eval_loss", "eval_accuracy"] = "eval_loss"
    """By which metric of the validation OUT/best is chosen."""
    peak_flops_per_s: float | None = None
    """A worker's peak FLOP/s at this precision (e.g. 989e12: H100, bf16 dense); given it, MFU is reported."""

    # When to give up
    divergence_steps: int = 100
    """Stop where the mean loss of so many steps is more than --divergence-factor times its lowest, and 1 above it; 0:
    never."""
    divergence_factor: float = 2.0
    """See --divergence-steps."""
    collapse_steps: int = 200
    """Stop where, after the warm-up, LinVT scores all tokens alike for so many steps in which it had to choose among
    them; 0: never."""

    def __post_init__(self) -> None:
        if not self.annotations:
            raise ValueError("--annotations needs at least one file")
        for name in (
            "visits_per_batch",
            "turns_per_visit",
            "window_shards",
            "threads_per_worker",
            "prefetch_batches",
            "save_every",
            "log_every",
            "eval_every",
            "eval_visits",
            "lora_rank",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{_flag(name)} must be at least 1, got {getattr(self, name)}")
        for name in (
            "warmup_steps",
            "weight_decay",
            "clip_grad_norm",
            "contrastive_weight",
            "max_failures",
            "min_learning_rate",
            "eval_answers",
            "divergence_steps",
            "collapse_steps",
            "seed",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{_flag(name)} must not be negative, got {getattr(self, name)}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"--micro-batch must be at least 1, got {self.micro_batch}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, got {self.steps}")
        if self.steps is None and not self.epochs > 0:
            raise ValueError(f"--epochs must be more than 0, got {self.epochs}")
        if not self.learning_rate > 0:
            raise ValueError(f"--learning-rate must be more than 0, got {self.learning_rate}")
        if not all(0 < weight < float("inf") for weight in self.mixture_weights):
            raise ValueError(f"--mixture-weights must be more than 0, got {list(self.mixture_weights)}")
        if not 0 <= self.max_left_out_share <= 1:
            raise ValueError(f"--max-left-out-share must be from 0 to 1, got {self.max_left_out_share}")
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("--precision bf16 needs --zero-stage 1, 2 or 3 (1 costs nothing on one worker)")
        if self.precision == "fp32" and self.zero_stage > 1:
            raise ValueError(f"--zero-stage {self.zero_stage} needs --precision bf16; fp32 trains under 0 and 1")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay must be from 0 to less than 1, got {self.ema_decay}")
        if not self.divergence_factor > 1:
            raise ValueError(f"--divergence-factor must be more than 1, got {self.divergence_factor}")
        if self.best_by == "eval_accuracy" and not self.answers_in_validation:
            raise ValueError(
                "--best-by eval_accuracy needs answers in validation: stage 2, --eval-answers, --zero-stage 0 to 2"
            )
        self.check_workers(*self.worker_range)

    def check_workers(self, fewest: int, most: int) -> None:
        """Raises ValueError where a batch cannot be shared among so many workers."""
        if most > self.visits_per_batch:
            raise ValueError(
                f"--visits-per-batch {self.visits_per_batch} is less than the {most} workers: "
                "every worker needs at least one sample of a batch"
            )
        uneven = [n for n in range(max(1, fewest), most + 1) if self.visits_per_batch % n]
        if self.micro_batch is not None and uneven:
            raise ValueError(
                f"--visits-per-batch {self.visits_per_batch} does not divide into {uneven[0]} workers, and "
                "--micro-batch needs equal shares; choose a multiple"
            )
        if self.is_contrastive and uneven:
            raise ValueError(
                f"--visits-per-batch {self.visits_per_batch} does not divide into {uneven[0]} workers, and the "
                "contrastive loss needs equal shares; choose a multiple, or --contrastive-weight 0"
            )

    @property
    def answers_in_validation(self) -> int:
        """Held-out questions that a validation answers by generation."""
        return self.eval_answers if self.stage == 2 and self.zero_stage < 3 else 0

    @property
    def is_contrastive(self) -> bool:
        return self.stage == 1 and self.contrastive_weight > 0

    @property
    def video_tokenizer_fields(self) -> dict[str, Any]:
        """The fields of LinVTConfig but for hidden_size, which is the backbone's."""
        return {
            field.name.removeprefix("linvt_"): getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name.startswith("linvt_")
        }

    @property
    def worker_range(self) -> tuple[int, int]:
        """(fewest, most) workers of --num-workers; (0, 0): no Ray."""
        parts = self.num_workers.split(":")
        if not (1 <= len(parts) <= 2 and all(part.isdecimal() for part in parts)):
            raise ValueError(f"--num-workers must be N or MIN:MAX, got {self.num_workers!r}")
        fewest, most = int(parts[0]), int(parts[-1])
        if not 1 <= fewest <= most and len(parts) == 2:
            raise ValueError(f"--num-workers must have 1 <= MIN <= MAX, got {self.num_workers!r}")
        return fewest, most

    def changed_since(self, earlier: dict[str, Any]) -> list[str]:
        """What forbids a run with this config to resume one with the config `earlier` (its JSON), a line a field."""
        mine = to_json(self)
        return [
            f"{_flag(name)}: {earlier.get(name)!r} then, {mine[name]!r} now"
            for name in SAME_ON_RESUME
            if earlier.get(name) != mine[name]
        ]


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The config as plain JSON values (tuples become lists)."""
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(config).items()
    }


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
