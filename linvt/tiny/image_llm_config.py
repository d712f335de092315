"""How the tiny image-LLM is trained. Imports no torch, so that `--help` is quick."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageLLMTrainConfig:
    out: str
    """Directory to write: a Hugging Face model directory plus a log of the training."""
    log_name: str = "training.json"
    """The log's file name in OUT: settings, curve and held-out accuracy."""
    init_from: str | None = None
    """A model directory to go on from; by default random weights."""
    freeze_vision: bool = False
    """Leave the vision tower and the projector as they are: caches of frame tokens stay valid."""
    steps: int = 4000
    batch_size: int = 48
    questions_per_image: int = 12
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.01
    patch_loss_weight: float = 0.5
    """Weight of the per-patch auxiliary loss."""
    unordered_share: float = 0.0
    """Share of the images whose patch tokens reach the LLM in random order and blended with each other, so that it
    learns to read what a token says rather than where it stands."""
    word_loss_weight: float = 0.0
    """Weight of the loss that draws a patch's token to the embeddings of the words for what lies under it."""
    seed: int = 0
    log_every: int = 50
    eval_every: int = 500
    eval_images: int = 250
    threads: int = 2
