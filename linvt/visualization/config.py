"""What a visualization can be asked for. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

EMBEDDED_MODEL = Path(__file__).parent.parent / "tiny" / "weights" / "video_llm"


@dataclass(frozen=True, kw_only=True, slots=True)
class VisualizeConfig:
    """Show which frames, shots and patches of a video an answer came from: frames.png, time.png, evidence.html."""

    question: str
    """What is asked about the video."""
    out: Path
    """Directory for the pictures, the page and evidence.json, which has their numbers."""
    video: str | None = None
    """The video: a file or any URI that fsspec opens. With --cache: where the sample's file is now, for pictures."""
    cache: str | None = None
    """Instead of decoding and encoding: the extraction (its --out) that holds the video's frame tokens."""
    sample: str | None = None
    """With --cache: the video's key, or its video id."""
    model: Path = EMBEDDED_MODEL
    """Directory of a trained model; by default the embedded one, which knows nothing but rendered scenes."""
    answer: str | None = None
    """Explain this answer instead of the model's own: where would it have come from?"""
    answer_tokens: bool = False
    """Also the weights of each token of the answer: answer_tokens.png, and in the page."""
    num_frames: int | None = None
    """Frames sampled from --video; by default as many as the model was trained on."""
    sampling: Literal["shots", "uniform"] = "shots"
    """Which frames stand for --video: some of every shot, or evenly spread ones."""
    detector: Literal["transnetv2", "autoshot", "none"] = "transnetv2"
    """Shot detector for --video."""
    detector_weights: Path | None = None
    """AutoShot's weights."""
    max_pictures: int = 16
    """Most frames in frames.png; of more, the heaviest of as many equal stretches. The page has them all."""
    max_new_tokens: int = 32
    """Longest answer, in tokens."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' type; auto: bfloat16 on a GPU, else float32."""
    on_existing: Literal["resume", "overwrite", "fail"] = "fail"
    """If --out holds results: keep them where all the same was asked (resume), replace them, or fail."""

    def __post_init__(self) -> None:
        if self.video is None and self.cache is None:
            raise ValueError("give --video FILE, or --cache URI with --sample KEY")
        if (self.cache is None) != (self.sample is None):
            raise ValueError("--cache and --sample go together: the sample's key or video id in that extraction")
        if not self.question.strip():
            raise ValueError("--question is empty")
        if self.answer is not None and not self.answer.strip():
            raise ValueError("--answer is empty: leave it out to explain the model's own")
        if min(self.max_pictures, self.max_new_tokens, self.num_frames or 1) < 1:
            raise ValueError("--num-frames, --max-pictures and --max-new-tokens must be at least 1")
