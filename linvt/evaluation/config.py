"""What an evaluation can be asked for. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

MethodName = Literal["linvt", "text_only", "middle_frame", "uniform_frames", "image", "base_image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateConfig:
    """Ask a model, or an endpoint, every question of a benchmark, and score the answers."""

    out: Path
    """Directory for results.jsonl (one line an answer), summary.json, summary.md and chart.png; of a published
    benchmark, OUT/NAME for these, and OUT/tables.md for the paper's tables with a row from all that OUT holds."""
    data: tuple[Path, ...] = ()
    """Annotation files with the questions; of a published benchmark, the folder with its files (docs/benchmarks.md)."""
    model: Path | None = None
    """Directory of a trained model; its answers come from the frame tokens in --cache."""
    endpoint: str | None = None
    """Instead of --model: base URL of an OpenAI-compatible endpoint (http://127.0.0.1:8000/v1)."""
    benchmark: str = "qa"
    """"qa": open or multiple-choice questions of annotation files, scored by normalised exact match. Else one of the
    paper's benchmarks by its own rules: mvbench, video-mme, pope, … (docs/benchmarks.md has all)."""
    format: str = "linvt"
    """Format of the annotation files: linvt, a published set's (docs/datasets.md), or auto."""
    media_prefix: str = ""
    """Put before every media name of the annotations to make it the cache's video id, e.g. "videos/"."""
    cache: str | None = None
    """With --model: the extraction (its --out) that holds the media's frame tokens."""
    media_root: Annotated[Path | None, tyro.conf.arg(aliases=["--media"])] = None
    """With --endpoint: the directory that the annotations' media paths start from; the endpoint must be allowed to
    read it. Images that a benchmark's files hold inside are unpacked to it."""
    methods: tuple[MethodName, ...] | None = None
    """What to compare; by default all that --model or --endpoint offers. Chance is always reported."""
    max_questions: int | None = None
    """Only the first so many questions of each kind of media (video, image)."""
    show_choices: bool = False
    """List a question's options in its prompt, lettered; then a letter counts as an answer too."""
    answers: Literal["free", "choices"] = "free"
    """"free": what the model says. "choices": where a question lists its options, the answer is one of them, the
    likeliest token by token, so that a method is not judged by whether it knows the format (needs --model)."""
    max_new_tokens: int | None = None
    """Longest answer, in tokens; by default 16, or what lmms-eval allows for the benchmark."""
    num_frames: int | None = None
    """With --endpoint: frames sampled per video, instead of the endpoint's default. Benchmarks with subtitles need it:
    they show those of the sampled frames."""
    batch_size: int = 32
    """Questions generated together (with --endpoint: asked at the same time)."""
    num_workers: int = 0
    """Ray actors that share the questions; 0: this process, without Ray."""
    gpus_per_worker: float | None = None
    """GPUs that Ray reserves for each worker; by default one if the cluster has any."""
    threads_per_worker: int | None = None
    """CPU threads of each worker; by default all for one worker, an even share for several."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Weights' type; auto: bfloat16 on a GPU, else float32."""
    served_model_name: str = "linvt"
    """With --endpoint: the name of its model."""
    api_key_env: str | None = None
    """With --endpoint: the environment variable that holds its API key."""
    judge_url: str | None = None
    """Base URL of an OpenAI-compatible endpoint (https://api.openai.com/v1) that judges a benchmark's open answers.
    Without one they are scored by exact match, and reported as that."""
    judge_model: str | None = None
    """Name of the judge's model there. Scores by different judges cannot be compared."""
    judge_key_env: str | None = None
    """The environment variable that holds the judge's API key."""
    harness: Literal["auto", "own", "lmms-eval"] = "auto"
    """Who asks and scores a published benchmark: this library, from --data, or lmms-eval, which fetches its own data
    and asks --endpoint. auto: our own if --data is given."""
    lmms_env: Path = Path(".venv-lmms-eval")
    """lmms-eval's environment; `python -m linvt.evaluation.lmms setup` makes it."""
    judge_workers: int = 8
    """Answers judged at the same time."""
    on_existing: Literal["resume", "overwrite", "fail"] = "fail"
    """What to do with results that --out holds already; resume answers only what is missing."""

    def __post_init__(self) -> None:
        if self.benchmark != "qa":
            self._check_benchmark()
        elif not self.data:
            raise ValueError("--benchmark qa asks the questions of annotation files: give --data")
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give either --model or --endpoint")
        if self.model is not None and self.cache is None:
            raise ValueError("--model answers from cached frame tokens: give --cache (an extraction's --out)")
        if self.endpoint is not None and self.media_root is None and not self.by_lmms_eval:
            raise ValueError("--endpoint reads the media itself: give --media-root (where their paths start)")
        if self.endpoint is not None and self.num_workers:
            raise ValueError(
                "--num-workers goes with --model; an endpoint is asked from this process, --batch-size at once"
            )
        if self.endpoint is not None and self.answers != "free":
            raise ValueError("--answers choices needs the model itself: give --model")
        if min(self.batch_size, self.answer_tokens, self.judge_workers) < 1 or self.num_workers < 0:
            raise ValueError("--batch-size, --max-new-tokens and --judge-workers must be at least 1, --num-workers 0")
        if (self.judge_url is None) != (self.judge_model is None):
            raise ValueError("a judge is named by both --judge-url and --judge-model")
        offered = ENDPOINT_METHODS if self.endpoint is not None else METHOD_KINDS
        unknown = [method for method in self.methods or () if method not in offered]
        if unknown:
            raise ValueError(f"methods {unknown} are not offered here; valid: {list(offered)}")

    def _check_benchmark(self) -> None:
        from linvt.evaluation.benchmarks import BENCHMARKS

        if self.benchmark not in BENCHMARKS:
            raise ValueError(f"--benchmark {self.benchmark!r} is not known; valid: qa, {', '.join(BENCHMARKS)}")
        if self.by_lmms_eval:
            if self.endpoint is None:
                raise ValueError(
                    f"--benchmark {self.benchmark} without --data is run by lmms-eval, which asks an endpoint: give "
                    "--endpoint, or --data FOLDER with the benchmark's published files"
                )
            if BENCHMARKS[self.benchmark].lmms_ours and (len(self.data) != 1 or self.media_root is None):
                raise ValueError(
                    f"lmms-eval has no {self.benchmark}; it becomes a task from its published files: give --data "
                    "FOLDER and --media-root"
                )
        elif len(self.data) != 1:
            raise ValueError(f"--benchmark {self.benchmark} reads its published files: give one --data FOLDER")
        if self.methods is not None or self.answers != "free" or self.show_choices:
            raise ValueError(
                f"--benchmark {self.benchmark} asks its own questions in its own words, of the trained model alone: "
                "--methods, --answers and --show-choices go with --benchmark qa"
            )
        asked = BENCHMARKS[self.benchmark]
        if self.by_lmms_eval and not asked.lmms_ours:
            if asked.lmms_judge is not None and self.judge_url is None:
                raise ValueError(f"lmms-eval's {self.benchmark} needs a judge: give --judge-url and --judge-model")
            if asked.lmms_judge not in (None, "*", self.judge_model):
                raise ValueError(
                    f"lmms-eval's {self.benchmark} asks its judge for {asked.lmms_judge} and nothing else, got "
                    f"--judge-model {self.judge_model}"
                )
            is_judged = asked.lmms_judge is not None
        else:
            is_judged = asked.judge is not None
        if self.judge_url is not None and not is_judged:
            raise ValueError(f"--benchmark {self.benchmark} is scored by a rule; leave --judge-url out")

    @property
    def by_lmms_eval(self) -> bool:
        """Whether lmms-eval asks and scores."""
        if self.benchmark == "qa" or self.harness == "own":
            return False
        return self.harness == "lmms-eval" or not self.data

    @property
    def answer_tokens(self) -> int:
        """The longest answer, in tokens."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        if self.benchmark == "qa":
            return 16
        from linvt.evaluation.benchmarks import BENCHMARKS

        return BENCHMARKS[self.benchmark].max_new_tokens


METHOD_KINDS: dict[str, Literal["video", "image"]] = {
    "linvt": "video",
    "text_only": "video",
    "middle_frame": "video",
    "uniform_frames": "video",
    "image": "image",
    "base_image": "image",
}
"""The questions that each method answers."""

ENDPOINT_METHODS = ("linvt", "image")
"""An endpoint is the trained model; the baselines need the image-LLM itself."""
