"""The tiny world on disk: ordinary mp4 and png files with one annotation row each. Deterministic and resumable."""

import json
import logging
import multiprocessing
import os
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm import tqdm

from linvt.tiny import image_questions, video_questions
from linvt.tiny.image_questions import Question
from linvt.tiny.scene import background, draw_thing, random_scene, render
from linvt.tiny.video_plot import FRAMES_PER_SECOND, Plot, Shot, Split, make_plot
from linvt.tiny.world_config import WorldConfig

logger = logging.getLogger(__name__)

SIZE_PX = 128
SPLITS: tuple[Split, ...] = ("train", "val", "test")


def make_world(config: WorldConfig) -> dict:
    """Writes what is missing and returns counts. Files that exist are taken for finished: each appears by a rename."""
    counts: dict[str, int] = {}
    out = Path(config.out)
    for split in SPLITS:
        videos = getattr(config, f"{split}_videos")
        images = {"train": config.train_images, "val": 0, "test": config.test_images}[split]
        for name in ("videos", "images"):
            (out / split / name).mkdir(parents=True, exist_ok=True)
        for kind, write, count in (("videos", write_video, videos), ("images", write_image, images)):
            rows = _map(partial(write, config, split), count, config.num_workers, f"{split} {kind}")
            text = "".join(json.dumps(row) + "\n" for row in rows)
            _write_atomically(out / f"{split}_{kind}.jsonl", text.encode())
            counts |= {f"{split}_{kind}": count, f"{split}_{kind}_questions": sum(len(row["qa"]) for row in rows)}
    return counts


def _map(function: partial, count: int, num_workers: int, label: str) -> list[dict]:
    progress = partial(tqdm, total=count, desc=label, disable=None, unit="file")
    if num_workers <= 1:
        return list(progress(map(function, range(count))))
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        return list(progress(pool.imap(function, range(count), chunksize=8)))


def write_video(config: WorldConfig, split: Split, index: int) -> dict:
    """Renders video `index` of a split unless it is there, and returns its annotation row."""
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index, 1])
    plot = make_plot(config.seed, split, index, long=rng.random() < config.long_share)
    media = f"{split}/videos/{index:06d}.mp4"
    file = Path(config.out) / media
    if not file.exists():
        encode_h264(plot, file)
    if split == "train":
        # Supervision as dense as it gets: a video is dear, a question about it is not.
        questions = video_questions.study(plot, rng)
    else:
        questions = video_questions.ask(plot, rng, config.questions_per_video)
    return {"media": media, "kind": "video", "caption": video_questions.caption(plot), "qa": _rows(questions)}


def write_image(config: WorldConfig, split: Split, index: int) -> dict:
    rng = np.random.default_rng([config.seed, SPLITS.index(split), index, 2])
    scene = random_scene(rng)
    media = f"{split}/images/{index:06d}.png"
    file = Path(config.out) / media
    if not file.exists():
        unfinished = file.with_suffix(".png.tmp")
        Image.fromarray(render(scene, SIZE_PX)).save(unfinished, format="PNG")
        unfinished.rename(file)
    questions = image_questions.ask(scene, rng, config.questions_per_image)
    unique = list({question.text: question for question in questions}.values())
    return {"media": media, "kind": "image", "caption": image_questions.caption(scene), "qa": _rows(unique)}


def _rows(questions: list[Question]) -> list[dict]:
    return [
        {"question": q.text, "answer": q.answer, "family": q.family}
        | ({"choices": list(q.choices)} if q.choices else {})
        for q in questions
    ]


def encode_h264(plot: Plot, file: Path) -> None:
    """A real H.264 file with real cuts. One encoder thread, so the bytes do not depend on the machine's cores."""
    unfinished = file.with_suffix(".mp4.tmp")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width = stream.height = SIZE_PX
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "preset": "veryfast", "threads": "1"}
        for shot in plot.shots:
            for pixels in render_shot(shot):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    unfinished.rename(file)


def render_shot(shot: Shot):
    """Yields uint8 [SIZE_PX, SIZE_PX, 3], one a frame."""
    empty = Image.fromarray(background.__wrapped__(shot.place, shot.texture_seed, SIZE_PX))
    for frame in range(shot.num_frames):
        canvas = empty.copy()
        for actor in shot.actors:
            draw_thing(canvas, actor.at(frame / max(1, shot.num_frames - 1)))
        yield np.asarray(canvas)


def _write_atomically(file: Path, content: bytes) -> None:
    unfinished = file.with_suffix(file.suffix + ".tmp")
    with open(unfinished, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    unfinished.rename(file)
