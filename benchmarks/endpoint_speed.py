"""What the endpoint adds to an answer, what its batches save, and what its cache saves.

    python benchmarks/endpoint_speed.py [--rounds 9] [--tokens 64] [--clients 8] [--seconds 60]

On the embedded LinVT and image-LLM, as they are but for an end: in a copy of the image-LLM no token ends an answer, so
that all have the same length. Everything runs on one CPU thread in each process. In every round the two sides of a
ratio follow one another; of the rounds' ratios the median counts, beside the quartiles.

- overhead: one client's time for an answer of --tokens about an encoded video, through HTTP; over the time of bare
  Transformers `generate` in this process, LinVT and prompt included, and over that of our own batcher alone.
- batching: tokens a second of --clients at once, over those of one.
- cache: time to the first token of the first question about an H.264 clip of --seconds (640×360, 24 fps; decoding,
  TransNetV2, encoding), over that of a second question.
"""

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when it is imported, in Ray's workers too

import av
import httpx
import numpy as np
import torch
from PIL import Image

from linvt.extraction.identity import FeatureSpec
from linvt.serving.batching import Batcher
from linvt.serving.chat import Answering
from linvt.serving.config import ServeConfig
from linvt.serving.encoding import decode, decode_order, encode
from linvt.serving.feature_spec import trained_feature_spec
from linvt.serving.requests import VideoOptions, parse_request
from linvt.shards import CachedVideo
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import VideoSideCache
from pipelines.serve import running

WEIGHTS = Path(__file__).resolve().parent.parent / "linvt" / "tiny" / "weights"
QUESTION = "what happens at the end ?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=60, help="of the clip that is asked about first and again")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        media = Path(folder) / "media"
        media.mkdir()
        model = never_ending(Path(folder))
        short = write_clip(media / "short.mp4", seconds=4, seed=0)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = ServeConfig(
            model=model,
            port=port,
            allowed_media_dir=(media,),
            max_new_tokens=options.tokens,
            max_batch=options.clients,
            max_queued_requests=options.clients,
        )
        url = stack.enter_context(running(config))
        http = stack.enter_context(httpx.Client(base_url=url, timeout=600))
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs, {options.rounds} rounds", flush=True)
        overhead(options, model, http, short)
        batching(options, http, short)
        cache(options, http, media)


def overhead(options: argparse.Namespace, model: Path, http: httpx.Client, clip: Path) -> None:
    spec, encode_batch_size = trained_feature_spec(model, detector="transnetv2")
    llm = VideoLLM.from_pretrained(model)
    llm.video_sides = VideoSideCache(2**30)
    video = encoded(llm, spec, clip, encode_batch_size)
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": QUESTION}]}]

    def bare() -> None:
        (ids,) = llm.generate_batch([(messages, [video])], max_new_tokens=options.tokens)
        assert len(ids) == options.tokens

    batcher = Batcher(llm.backbone, max_rows=1)
    request = parse_request(body(clip, options.tokens), model_names=("linvt",))

    def alone() -> None:
        answering = Answering(llm, request, [(video, True)], max_new_tokens=options.tokens)
        assert len(batcher.submit(answering.rows[0]).result().ids) == options.tokens

    def endpoint() -> None:
        answer(http, clip, options.tokens)

    for warm_up in (bare, alone, endpoint):
        warm_up()
    rounds = [[seconds(side) for side in (endpoint, bare, alone)] for _ in range(options.rounds)]
    batcher.close()
    report("overhead: endpoint / generate", [e / b for e, b, _ in rounds])
    report("overhead: endpoint / batcher alone", [e / a for e, _, a in rounds])
    report("          milliseconds beyond the batcher", [1e3 * (e - a) for e, _, a in rounds])


def batching(options: argparse.Namespace, http: httpx.Client, clip: Path) -> None:
    ratios = []
    with ThreadPoolExecutor(options.clients) as clients:

        def together() -> None:
            list(clients.map(lambda _: answer(http, clip, options.tokens), range(options.clients)))

        together()
        for _ in range(options.rounds):
            one = seconds(lambda: answer(http, clip, options.tokens))
            ratios.append(options.clients * one / seconds(together))
    report(f"batching: tokens/s of {options.clients} clients / of 1", ratios)


def cache(options: argparse.Namespace, http: httpx.Client, media: Path) -> None:
    firsts, ratios = [], []
    for round_ in range(max(1, options.rounds // 3)):
        clip = write_clip(media / f"{round_}.mp4", seconds=options.seconds, seed=round_ + 1)
        first, *seconds_ones = [first_token_s(http, clip) for _ in range(4)]
        firsts.append(first)
        ratios.append(first / statistics.median(seconds_ones))
    report("cache: first token of question 1 / of question 2", ratios)
    report("       seconds to it, question 1", firsts)


def body(clip: Path, tokens: int) -> dict[str, Any]:
    video = {"type": "video_url", "video_url": {"url": clip.as_uri()}}
    content = [video, {"type": "text", "text": QUESTION}]
    return {"model": "linvt", "messages": [{"role": "user", "content": content}], "max_tokens": tokens}


def answer(http: httpx.Client, clip: Path, tokens: int) -> None:
    response = http.post("chat/completions", json=body(clip, tokens)).raise_for_status()
    assert response.json()["usage"]["completion_tokens"] == tokens


def first_token_s(http: httpx.Client, clip: Path) -> float:
    started = time.perf_counter()
    with http.stream("POST", "chat/completions", json=body(clip, 4) | {"stream": True}) as response:
        for line in response.iter_lines():
            chunk = json.loads(line.removeprefix("data: ")) if line.startswith("data: {") else {"choices": []}
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                return time.perf_counter() - started
    raise RuntimeError(f"no text came: {response.status_code}")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def report(what: str, values: list[float]) -> None:
    low, median, high = np.percentile(values, [25, 50, 75])
    print(f"{what:52} {median:8.3f}   [{low:.3f}, {high:.3f}]", flush=True)


def encoded(llm: VideoLLM, spec: FeatureSpec, clip: Path, batch_size: int) -> CachedVideo:
    order = decode_order("mp4", "video", VideoOptions(), spec=spec, detector="transnetv2", max_frames=256)
    return encode(llm.backbone, order, *decode(order, clip), batch_size=batch_size)


def never_ending(folder: Path) -> Path:
    """A copy of the embedded models in which no token ends an answer."""
    image_llm, model = folder / "image_llm", folder / "video_llm"
    shutil.copytree(WEIGHTS / "image_llm", image_llm)
    shutil.copytree(WEIGHTS / "video_llm", model)
    change(image_llm / "generation_config.json", eos_token_id=2**30)
    change(model / "config.json", backbone=str(image_llm))
    return model


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def write_clip(path: Path, *, seconds: int, seed: int, size: tuple[int, int] = (640, 360), fps: int = 24) -> Path:
    """H.264 with a cut every five seconds."""
    random, (width, height) = np.random.default_rng(seed), size
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for i in range(seconds * fps):
            if i % (5 * fps) == 0:
                coarse = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
                texture = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC))
            picture = np.ascontiguousarray(texture[:, i % width : i % width + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


if __name__ == "__main__":
    main()
