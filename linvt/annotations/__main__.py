"""`python -m linvt.annotations inspect|convert FILE …`: look at published annotation files, or rewrite them."""

import sys
from typing import Any

from linvt.annotations.config import ConvertConfig, InspectConfig
from linvt.command import run

USAGE = """usage: python -m linvt.annotations COMMAND FILE [FILE …] [flags]

  inspect   what the files are, how many rows and samples, broken rows, missing media, duplicates
  convert   the same rows as one .jsonl in LinVT's own format

python -m linvt.annotations COMMAND --help shows a command's flags."""


def _inspect(config: InspectConfig) -> dict[str, Any]:
    from linvt.annotations.inspecting import inspect

    return inspect(config)


def _convert(config: ConvertConfig) -> dict[str, Any]:
    from linvt.annotations.converting import convert

    return convert(config)


def main() -> None:
    command = sys.argv.pop(1) if len(sys.argv) > 1 else ""
    if command == "inspect":
        run(InspectConfig, _inspect, "Say what annotation files hold.")
    elif command == "convert":
        run(ConvertConfig, _convert, "Write annotation files as one file in LinVT's own format.")
    elif command in ("-h", "--help"):
        print(USAGE)
    else:
        print(USAGE, file=sys.stderr)
        print('{"error": "expected a command, inspect or convert", "error_class": "UsageError"}')
        raise SystemExit(2)


if __name__ == "__main__":
    main()
