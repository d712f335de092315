"""`python -m linvt.evaluation.lmms setup|export …`: lmms-eval beside this library."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from linvt.command import run

USAGE = """usage: python -m linvt.evaluation.lmms COMMAND [flags]

  setup     make an environment with lmms-eval in it, for `jobs/evaluate.py --harness lmms-eval`
  export    write a benchmark as a task for lmms-eval, whatever the model

python -m linvt.evaluation.lmms COMMAND --help shows a command's flags."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Make an environment with lmms-eval in it, apart from this one, whose packages it could not share."""

    env: Path = Path(".venv-lmms-eval")
    """Where it goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Write a benchmark as a task that lmms-eval runs with --include_path OUT, whatever the model."""

    name: Annotated[str, tyro.conf.Positional]
    """Which benchmark (docs/benchmarks.md)."""
    data: Path
    """The folder with its published files."""
    media_root: Annotated[Path, tyro.conf.arg(aliases=["--media"])]
    """The folder with its media."""
    out: Path
    """The folder for the task."""
    num_frames: int | None = None
    """For benchmarks with subtitles: how many frames of a video are seen."""


def _setup(config: Setup) -> dict[str, Any]:
    from linvt.evaluation.lmms.environment import make_environment

    return make_environment(config.env)


def _export(config: Export) -> dict[str, Any]:
    from linvt.evaluation.benchmarks import BENCHMARKS
    from linvt.evaluation.entry import LoadOptions
    from linvt.evaluation.lmms.tasks import export_task

    if config.name not in BENCHMARKS:
        raise ValueError(f"no benchmark {config.name!r}; valid: {', '.join(BENCHMARKS)}")
    benchmark = BENCHMARKS[config.name]
    items = benchmark.load(config.data, LoadOptions(media=config.media_root, num_frames=config.num_frames))
    return export_task(benchmark, items, media_root=config.media_root, out=config.out)


def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if command == "setup":
        run(Setup, _setup, "Make an environment with lmms-eval in it.")
    elif command == "export":
        run(Export, _export, "Write a benchmark as a task for lmms-eval.")
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        print(USAGE, file=sys.stderr)
        print('{"error": "expected a command, setup or export", "error_class": "UsageError"}')
        raise SystemExit(2)


if __name__ == "__main__":
    main()
