"""The command line that every job shares: flags over a TOML recipe, one JSON line at the end, an honest exit code."""

import dataclasses
import json
import logging
import os
import sys
import tomllib
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import tyro

from linvt.storage_error import StorageError

ConfigT = TypeVar("ConfigT")


class Stopped(Exception):
    """The job was asked to stop (SIGTERM) and did so in a state to go on from. Exit code 143, the signal's own."""


def run(
    config_class: type[ConfigT],
    main: Callable[[ConfigT], dict[str, Any]],
    description: str,
    *,
    forecast: Callable[[ConfigT], dict[str, Any]] = lambda _: {},
) -> None:
    """Parse the command line, call `main(config)`, print its result as the last line of stdout, exit.

    `--config FILE.toml` gives defaults that flags override; `--dry-run` prints the resolved configuration instead of
    running, and what `forecast(config)` adds to it. The result of `main` is printed as one JSON object, and so is a
    failure, `{"error": …}` with exit code 1. A ValueError is taken for a user's mistake and
    shown without a traceback, and so is a StorageError.
    """
    logging.basicConfig(level=os.environ.get("LINVT_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(message)s")
    arguments = sys.argv[1:]
    try:
        recipe, arguments = _take_recipe(arguments)
        dry_run = "--dry-run" in arguments
        arguments = [argument for argument in arguments if argument != "--dry-run"]
        config = parse(config_class, arguments, recipe=recipe, description=description)
        result = {"dry_run": True, **_plain(config), **forecast(config)} if dry_run else main(config)
    except SystemExit as end:
        # Tyro has said on stderr what is wrong with the command line; after --help there is nothing to add.
        if end.code:
            _print_last_line({"error": "the command line is not valid; stderr says why", "error_class": "UsageError"})
        raise
    except (ValueError, StorageError) as error:
        _fail(error)
    except KeyboardInterrupt:
        _fail(RuntimeError("interrupted; run the same command with --on-existing resume to go on"), code=130)
    except Stopped as stop:
        _fail(stop, code=143)
    except Exception as error:
        traceback.print_exc()
        _fail(error)
    else:
        _print_last_line(result)


def parse(
    config_class: type[ConfigT], arguments: list[str], *, recipe: dict[str, Any] | None = None, description: str = ""
) -> ConfigT:
    """A `config_class` from flags over a recipe (the parsed TOML). Unknown recipe keys raise ValueError.

    A recipe may give required fields, which a dataclass default cannot: they enter as flags that precede the user's,
    and the last occurrence of a flag wins.
    """
    recipe = recipe or {}
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(recipe) - set(fields))
    if unknown:
        raise ValueError(f"unknown keys in the recipe: {unknown}; valid keys: {sorted(fields)}")
    given = {argument.split("=", 1)[0].removeprefix("--").replace("-", "_") for argument in arguments}
    prefix: list[str] = []
    for name, value in recipe.items():
        if name not in given and f"no_{name}" not in given:
            prefix += _as_flags(name, value)
    return tyro.cli(
        config_class,
        args=prefix + arguments,
        description=description + "\n\n--config FILE.toml gives defaults; --dry-run prints the resolved configuration.",
    )


def _as_flags(name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else "--no-" + name.replace("_", "-")]
    if isinstance(value, list):
        return [flag, *map(str, value)]
    return [flag, str(value)]


def _take_recipe(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Splits `--config FILE` (or `--config=FILE`) off the arguments and reads it."""
    for i, argument in enumerate(arguments):
        if argument == "--config" or argument.startswith("--config="):
            if "=" in argument:
                path, rest = argument.split("=", 1)[1], arguments[i + 1 :]
            elif i + 1 < len(arguments):
                path, rest = arguments[i + 1], arguments[i + 2 :]
            else:
                raise ValueError("--config needs the path of a TOML file")
            if not Path(path).is_file():
                raise ValueError(f"--config {path}: no such file; shipped recipes are in jobs/configs/")
            return tomllib.loads(Path(path).read_text()), arguments[:i] + rest
    return {}, arguments


def _plain(config: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def _print_last_line(result: dict[str, Any]) -> None:
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0":
        return  # Of torchrun's workers the first one speaks for all.
    # Libraries that print at interpreter exit must not come after the outcome.
    sys.stderr.flush()
    print(json.dumps(result, default=float), flush=True)


def _fail(error: BaseException, code: int = 1) -> None:
    print(f"error: {error}", file=sys.stderr)
    _print_last_line({"error": str(error), "error_class": type(error).__name__})
    raise SystemExit(code)
