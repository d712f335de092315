"""An environment for lmms-eval: it wants an older PyAV and a torchvision, which this library's cannot have."""

import importlib.metadata
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from linvt.evaluation.lmms import LMMS_EVAL

# LongVideoBench's task imports decord, which lmms-eval installs only on request. From version 4 on, filelock has no
# module _api, without which lmms-eval starts, fails, and exits 0.
_PACKAGES = (f"lmms_eval=={LMMS_EVAL}", "decord", "filelock<4")


def make_environment(folder: Path) -> dict[str, Any]:
    """Makes `folder` a virtual environment with lmms-eval, or completes one. Raises RuntimeError if it cannot run.

    It gets the torch version of this environment, so that a build for this machine which is at hand is taken again.
    """
    python = folder / "bin/python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    # A local version such as 2.13.0+cpu is on no package index; the index decides which build 2.13.0 is.
    torch = importlib.metadata.version("torch").split("+")[0]
    _run([python, "-m", "pip", "install", "--quiet", f"torch=={torch}", *_PACKAGES])
    # It is only there for image-LLMs that run inside lmms-eval; a build for another torch breaks every import of it.
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode:
        _run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"])
    check_environment(folder)
    return {"env": str(folder), "lmms_eval": LMMS_EVAL, "torch": torch, "python": sys.version.split()[0]}


def check_environment(folder: Path) -> None:
    """Raises ValueError if there is no lmms-eval of the right version that can be imported."""
    python = folder / "bin/python"
    how = f"make it with `python -m linvt.evaluation.lmms setup --env {folder}`"
    if not python.exists():
        raise ValueError(f"{folder}: no environment for lmms-eval; {how}")
    code = (
        "import importlib.metadata as m, filelock._api, lmms_eval.evaluator, lmms_eval.models.chat.openai; "
        "print(m.version('lmms_eval'))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    version = done.stdout.strip().split("\n")[-1]
    if done.returncode or version != LMMS_EVAL:
        found = f"version {version}" if not done.returncode else done.stderr.strip().split("\n")[-1]
        raise ValueError(f"{folder}: expected lmms-eval {LMMS_EVAL}, found {found}; {how}")


def _run(command: list[Any]) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(map(str, command))}` failed:\n{done.stderr[-2000:]}")
