"""How much of the tiny world is put on disk. Imports neither torch nor av."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    out: str
    """Directory to write: OUT/{train,val,test}_{videos,images}.jsonl and the media that they name."""
    train_videos: int = 4000
    val_videos: int = 100
    test_videos: int = 400
    train_images: int = 1000
    test_images: int = 400
    questions_per_video: int = 8
    """Of validation and test videos; training videos come with every question that can be asked of them."""
    questions_per_image: int = 6
    long_share: float = 0.01
    """Share of videos that last five minutes."""
    seed: int = 0
    num_workers: int = 2
    """Processes that render. The files do not depend on it."""
