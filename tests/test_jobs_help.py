"""Every job answers at once, runs dry, and ends with one line of JSON."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# The flags that each job insists on.
REQUIRED: dict[str, list[str]] = {
    "demo": [],
    "estimate": ["--videos", "1000", "--backbone", "molmo-7b-d"],
    "evaluate": ["--data", "questions.jsonl", "--model", "model", "--cache", "cache", "--out", "out"],
    "export": ["--model", "model", "--out", "out"],
    "extract_features": ["--videos", "videos", "--backbone", "tiny", "--out", "out"],
    "make_world": ["--out", "out"],
    "serve": ["--model", "model"],
    "train": [
        *("--stage", "1", "--cache", "cache", "--annotations", "captions.jsonl"),
        *("--backbone", "tiny", "--out", "out"),
    ],
    "train_image_llm": ["--out", "out"],
    "visualize": ["--video", "video.mp4", "--question", "what ?", "--out", "out"],
}
JOBS = sorted(REQUIRED)

# Runs a job's file as `python FILE --help` does, then tells which heavy packages that took.
_HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as exit:
    assert not exit.code, exit.code
print("loaded:", sorted({"ray", "torch", "transformers"} & set(sys.modules)))
"""


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_job_is_tested_here() -> None:
    assert {file.stem for file in (ROOT / "jobs").glob("*.py")} - {"__init__"} == set(JOBS)


@cache
def help_of(job: str) -> str:
    done = run_python("-c", _HELP, f"jobs/{job}.py")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_help_is_light(job: str) -> None:
    assert "--config FILE.toml" in help_of(job)
    assert help_of(job).splitlines()[-1] == "loaded: []"


def test_commands_in_the_readme_use_flags_that_exist() -> None:
    # A command goes on after a backslash at the end of its line.
    commands = re.findall(r"jobs/(\w+)\.py((?: [^\n]*\\\n)*[^\n|`]*)", (ROOT / "README.md").read_text())
    used = {(job, flag) for job, arguments in commands for flag in re.findall(r"(?<= )--[a-z-]+", arguments)}
    assert {job for job, _ in used} >= {"extract_features", "train", "evaluate", "serve"}
    unknown = {(job, flag) for job, flag in used if not re.search(rf"(?<!\S){flag}(?![\w-])", help_of(job))}
    assert unknown == set()


@pytest.mark.parametrize("job", JOBS)
def test_dry_run_prints_the_resolved_configuration(job: str) -> None:
    done = run_python(f"jobs/{job}.py", *REQUIRED[job], "--dry-run")
    assert done.returncode == 0, done.stderr
    resolved = json.loads(done.stdout.splitlines()[-1])
    assert resolved.pop("dry_run") is True
    for flag, value in zip(REQUIRED[job][::2], REQUIRED[job][1::2], strict=True):
        found = resolved[flag.removeprefix("--").replace("-", "_")]
        assert value in ([str(one) for one in found] if isinstance(found, list) else [str(found)]), flag


def test_a_users_mistake_ends_with_json_too() -> None:
    done = run_python("jobs/make_world.py", "--out", "out", "--config", "nowhere.toml")
    assert done.returncode == 1
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["error_class"] == "ValueError"
    assert "nowhere.toml" in outcome["error"]
    assert "Traceback" not in done.stderr
