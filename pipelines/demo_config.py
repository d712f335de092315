"""What the demo can be told. Imports neither torch nor ray."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoConfig:
    """The whole job on the embedded tiny image-LLM, through the same jobs/*.py that a cluster runs."""

    out: str = "demo"
    """Directory for everything the demo makes. A second run goes on from what is there."""
    model: str = "linvt/tiny/weights/video_llm"
    """Committed LinVT and adapter, evaluated and served; the demo's own brief training is reported apart."""
    train_videos: int = 96
    test_videos: int = 40
    images: int = 60
    """Still images: held-out ones for the image questions, as many for stage 2."""
    num_frames: int = 32
    steps: int = 150
    """Optimizer steps of each of the two brief trainings."""
    num_workers: int = 2
    """Training workers."""
    seed: int = 2026
    """Of the world that is rendered; the committed weights saw other videos."""
    port: int = 0
    """Of the endpoint; 0 takes a free one."""
