"""The whole job as a user would run it: the jobs' own command lines, one after the other."""

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from pipelines.demo_config import DemoConfig

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent
_SERVER_START_S = 180


def demo(config: DemoConfig) -> dict[str, Any]:
    """Runs every step and returns the demo's one JSON object. Raises RuntimeError, naming the step, if one fails."""
    started = time.monotonic()
    out = Path(config.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    world, cache = out / "world", out / "cache"

    _say("1/7 rendering videos (H.264, real cuts) and images, with captions and questions")
    _job(
        "make_world",
        {
            "out": world,
            "train_videos": config.train_videos,
            "val_videos": 8,
            "test_videos": config.test_videos,
            "train_images": config.images,
            "test_images": config.images,
            "seed": config.seed,
        },
    )

    _say("2/7 extraction: decode once, find shots (TransNetV2), encode frames, commit shards")
    extracted = _job(
        "extract_features",
        {"videos": world, "backbone": "tiny", "out": cache, "num_frames": config.num_frames, "on_existing": "resume"},
    )

    _say(f"3/7 stage 1, briefly, from scratch: LinVT on captions ({config.steps} steps, {config.num_workers} workers)")
    stage1 = _train(config, out, stage=1, init_from=None)
    _say(f"4/7 stage 2, briefly: LinVT and LoRA on questions ({config.steps} steps)")
    stage2 = _train(config, out, stage=2, init_from=out / "stage1" / "model")

    _say("5/7 evaluating the brief training just done, on held-out videos")
    brief = _evaluate(config, out, "brief", out / "stage2" / "model", ["linvt"])
    stage1_images = _evaluate(config, out, "stage1_images", out / "stage1" / "model", ["image"])
    _say(f"6/7 evaluating the committed weights ({config.model}), trained for longer, and the baselines")
    methods = ["linvt", "uniform_frames", "middle_frame", "text_only", "image", "base_image"]
    committed = _evaluate(config, out, "committed", (_ROOT / config.model).resolve(), methods)

    _say("7/7 serving the committed weights and asking a question about a held-out video")
    served = _serve_and_ask(config, world)

    accuracy = committed["accuracy"]
    chance = committed["chance"]["video"]
    _say(
        f"LinVT {accuracy['linvt']:.1%} with the committed weights, {brief['accuracy']['linvt']:.1%} after the demo's "
        f"own {2 * config.steps} steps; chance is {chance:.1%}. Losses: stage 1 {stage1['loss_first']:.2f} -> "
        f"{stage1['loss_last']:.2f}, stage 2 {stage2['loss_first']:.2f} -> {stage2['loss_last']:.2f}"
    )
    return {
        "extract": extracted,
        "accuracy": {
            **{name: accuracy[name] for name in ("linvt", "uniform_frames", "middle_frame", "text_only")},
            "chance": chance,
        },
        "image_accuracy": {
            "base": accuracy["base_image"],
            "stage1": stage1_images["accuracy"]["image"],
            "stage2": accuracy["image"],
        },
        "brief_training": {
            "stage1_loss": [stage1["loss_first"], stage1["loss_last"]],
            "stage2_loss": [stage2["loss_first"], stage2["loss_last"]],
            "accuracy": brief["accuracy"]["linvt"],
        },
        "served": served,
        "seconds": round(time.monotonic() - started, 1),
    }


def _train(config: DemoConfig, out: Path, *, stage: int, init_from: Path | None) -> dict[str, Any]:
    flags: dict[str, Any] = {
        "config": _ROOT / "jobs" / "configs" / f"tiny-stage{stage}.toml",
        "cache": out / "cache",
        "annotations": [out / "world" / f"train_{kind}.jsonl" for kind in ("videos", "images")],
        "out": out / f"stage{stage}",
        "steps": config.steps,
        "warmup_steps": max(1, config.steps // 8),
        "num_workers": config.num_workers,
        "threads_per_worker": 1,
        "on_existing": "resume",
    }
    if init_from is not None:
        flags["init_from"] = init_from
    return _job("train", flags)


def _evaluate(config: DemoConfig, out: Path, name: str, model: Path, methods: list[str]) -> dict[str, Any]:
    return _job(
        "evaluate",
        {
            "model": model,
            "cache": out / "cache",
            "data": [out / "world" / "test_videos.jsonl", out / "world" / "test_images.jsonl"],
            "out": out / "evaluation" / name,
            "methods": methods,
            # The image-LLM was never taught these questions: free to say anything, it would score below chance.
            "answers": "choices",
            "on_existing": "resume",
        },
    )


def _serve_and_ask(config: DemoConfig, world: Path) -> dict[str, Any]:
    row, turn = _a_question(world / "test_videos.jsonl")
    with _server(config, world) as url:
        answer = httpx.post(
            f"{url}/v1/chat/completions",
            json={
                "model": "linvt",
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "video_url", "video_url": {"url": (world / row["media"]).as_uri()}},
                            {"type": "text", "text": turn["question"]},
                        ],
                    }
                ],
                "max_tokens": 8,
                "linvt": {"evidence": True},
            },
            timeout=120,
        )
        answer.raise_for_status()
    completion = answer.json()
    evidence = sorted(completion["linvt"]["videos"][0]["evidence"], key=lambda moment: -moment["weight"])
    return {
        "question": turn["question"],
        "answer": completion["choices"][0]["message"]["content"],
        "expected": turn["answer"],
        "video": row["media"],
        "evidence": evidence[:5],
    }


def _a_question(annotations: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first question about where something is at the end: its last frames should weigh, which an eye can check."""
    rows = [json.loads(line) for line in annotations.read_text().splitlines()]
    turns = [(row, turn) for row in rows for turn in row["qa"]]
    return next(((row, turn) for row, turn in turns if turn["family"] == "end state"), turns[0])


@contextlib.contextmanager
def _server(config: DemoConfig, media: Path) -> Iterator[str]:
    port = config.port or _free_port()
    url = f"http://127.0.0.1:{port}"
    command = _command(
        "serve",
        {
            "model": (_ROOT / config.model).resolve(),
            "port": port,
            "allowed_media_dir": media,
            "num_frames": config.num_frames,
        },
    )
    server = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.DEVNULL, env=_environment())
    try:
        deadline = time.monotonic() + _SERVER_START_S
        while not _is_healthy(url):
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the endpoint did not come up (exit code {server.poll()}): {' '.join(command)}")
            time.sleep(0.5)
        yield url
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _job(name: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Runs jobs/NAME.py; its progress goes to our stderr, its last line of stdout is the result."""
    command = _command(name, flags)
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True, env=_environment())
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        raise RuntimeError(f"jobs/{name}.py failed ({done.returncode}): {lines[-1] if lines else 'no output'}")
    return json.loads(lines[-1])


def _command(name: str, flags: dict[str, Any]) -> list[str]:
    command = [sys.executable, str(_ROOT / "jobs" / f"{name}.py")]
    for flag, value in flags.items():
        values = value if isinstance(value, list) else [value]
        command += ["--" + flag.replace("_", "-"), *map(str, values)]
    return command


def _environment() -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(_ROOT), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, "PYTHONPATH": path}


def _say(message: str) -> None:
    logger.info("%s", message)
