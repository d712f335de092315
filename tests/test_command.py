"""Flags over a recipe, and how a job ends."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from linvt.command import parse, run


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    out: str
    count: int = 1
    rates: tuple[float, ...] = (0.5,)
    verify: bool = True
    limit: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count must be at least 1, got {self.count}")


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults() -> None:
    recipe = {"out": "from-recipe", "count": 3, "rates": [0.1, 0.2], "verify": False}
    assert parse(Config, [], recipe=recipe) == Config(out="from-recipe", count=3, rates=(0.1, 0.2), verify=False)
    flags = ["--out=from-flag", "--count", "5", "--rates", "0.9", "--verify"]
    assert parse(Config, flags, recipe=recipe) == Config(out="from-flag", count=5, rates=(0.9,), verify=True)
    assert parse(Config, ["--out", "x", "--no-verify", "--limit", "7"]) == Config(out="x", verify=False, limit=7)


def test_unknown_keys_of_a_recipe_are_named() -> None:
    with pytest.raises(ValueError, match=r"\['cuont'\]; valid keys: .*'count'"):
        parse(Config, ["--out", "x"], recipe={"cuont": 3})


def run_job(monkeypatch: pytest.MonkeyPatch, main, *arguments: str) -> int:
    """The exit code of a job with this command line."""
    monkeypatch.setattr(sys, "argv", ["job.py", *arguments])
    try:
        run(Config, main, "A job.")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def last_line(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_a_job_ends_with_its_result(monkeypatch, capsys, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('out = "there"\ncount = 2\n')

    def main(config: Config) -> dict:
        print("something else")
        return {"count": config.count}

    assert run_job(monkeypatch, main, "--config", str(recipe)) == 0
    assert last_line(capsys) == {"count": 2}
    assert run_job(monkeypatch, main, f"--config={recipe}", "--count", "4") == 0
    assert last_line(capsys) == {"count": 4}


def test_a_dry_run_does_nothing(monkeypatch, capsys) -> None:
    def main(config: Config) -> dict:
        raise AssertionError("ran")

    assert run_job(monkeypatch, main, "--out", "x", "--dry-run") == 0
    assert last_line(capsys) == {
        "dry_run": True,
        "out": "x",
        "count": 1,
        "rates": [0.5],
        "verify": True,
        "limit": None,
    }


@pytest.mark.parametrize("wrong", [["--count", "0"], ["--count", "many"], ["--cuont", "3"]])
def test_a_wrong_command_line_is_told_on_stderr_and_ends_with_json(monkeypatch, capsys, wrong) -> None:
    assert run_job(monkeypatch, lambda config: {}, "--out", "x", *wrong) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["error_class"] == "UsageError"
    assert wrong[0] in captured.err


@pytest.mark.parametrize(
    ("arguments", "error_class", "said"),
    [
        (["--config", "nowhere.toml"], "ValueError", "no such file"),
        (["--out", "x", "--config"], "ValueError", "needs the path"),
        (["--out", "x"], "RuntimeError", "a disk is full"),
    ],
)
def test_a_failure_is_json_with_an_exit_code(monkeypatch, capsys, arguments, error_class, said) -> None:
    def main(config: Config) -> dict:
        raise RuntimeError("a disk is full")

    assert run_job(monkeypatch, main, *arguments) == 1
    outcome = last_line(capsys)
    assert outcome["error_class"] == error_class
    assert said in outcome["error"]
