"""How fast published annotation files are read, and what memory that takes.

    python benchmarks/annotations_speed.py [--rows 500000] [--formats webvid video-chatgpt …]

For every format a file of so many rows is written, whose texts vary, and read by `read_rows`; beside it, in turn and in
the same process, the same file by the bare parser that it rests on: csv.reader for tables, json.loads of the lines for
JSON lines, json.load of the whole for arrays. Rows per CPU second, best of three. Then the peak memory of a process of
its own that reads the file, and of one that reads a file of a tenth of the rows: what does not grow is streamed. Last,
`python -m linvt.annotations inspect`, with its search for duplicates.
"""

import argparse
import csv
import json
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from linvt.annotations import Annotation, read_rows

ROOT = Path(__file__).resolve().parent.parent
_WORDS = ["a", "the", "man", "woman", "dog", "runs", "red", "ball", "street", "over", "holds", "while", "two", "beach"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--formats", nargs="+", choices=WRITERS, default=list(WRITERS))
    options = parser.parse_args()
    print(f"{options.rows:,} rows; Python {platform.python_version()}, {platform.processor() or platform.machine()}\n")
    print("| format | MB | rows/CPU s | bare parser | ratio | peak MiB | of a tenth | inspect rows/s |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for format in options.formats:
            path, tenth = Path(folder, f"{format}.txt"), Path(folder, f"{format}-tenth.txt")
            WRITERS[format](path, options.rows)
            WRITERS[format](tenth, options.rows // 10)
            ours, bare = _rates(path, format, options.rows)
            memory = [_peak_mib(one, format) for one in (path, tenth)]
            print(
                f"| {format} | {path.stat().st_size / 1e6:.0f} | {ours:,.0f} | {bare:,.0f} | {ours / bare:.2f} "
                f"| {memory[0]:.0f} | {memory[1]:.0f} | {_inspect_rate(path, format, options.rows):,.0f} |",
                flush=True,
            )
            path.unlink()


def _rates(path: Path, format: str, num_rows: int) -> tuple[float, float]:
    """Rows per CPU second of `read_rows` and of the bare parser."""
    best = [float("inf"), float("inf")]
    for _ in range(3):
        for which, count in enumerate((lambda: _count_ours(path, format), lambda: _count_bare(path))):
            started = time.process_time()
            assert count() == num_rows
            best[which] = min(best[which], time.process_time() - started)
    return num_rows / best[0], num_rows / best[1]


def _count_ours(path: Path, format: str) -> int:
    return sum(isinstance(row, Annotation) for _, row in read_rows(path, format))


def _count_bare(path: Path) -> int:
    with path.open(encoding="utf-8", newline="") as file:
        first = file.read(1)
        file.seek(0)
        if first == "[":
            return len(json.load(file))
        if first == "{":
            return sum(json.loads(line) is not None for line in file)
        return sum(1 for _ in csv.reader(file)) - 1


def _peak_mib(path: Path, format: str) -> float:
    """Of a process that does nothing but read the file."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom linvt.annotations import read_rows\n"
        "for _ in read_rows(Path(sys.argv[1]), sys.argv[2]): pass\n"
        # Not getrusage's maximum, which a child begins with its parent's.
        "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", program, path, format], cwd=ROOT, capture_output=True, check=True)
    return int(done.stdout) / 1024


def _inspect_rate(path: Path, format: str, num_rows: int) -> float:
    command = [sys.executable, "-m", "linvt.annotations", "inspect", path, "--format", format]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return num_rows / (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def _texts(num_words: int) -> Iterator[str]:
    chance = random.Random(0)
    while True:
        yield " ".join(chance.choices(_WORDS, k=num_words))


def _write_table(
    path: Path, header: str, num_rows: int, row: Callable[[int, str], tuple[Any, ...]], delimiter: str = ","
) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header.split(","))
        writer.writerows(row(number, text) for number, text in zip(range(num_rows), _texts(12)))


def _write_json(path: Path, num_rows: int, row: Callable[[int, str], dict[str, Any]], *, lines: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("" if lines else "[")
        for number, text in zip(range(num_rows), _texts(12)):
            file.write(("" if number == 0 else "\n" if lines else ", ") + json.dumps(row(number, text)))
        file.write("" if lines else "]")


def _conversation(text: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": "<video>\nWhat happens in the video?"}, {"from": "gpt", "value": text}]


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "webvid": lambda path, n: _write_table(
        path,
        "videoid,contentUrl,duration,page_dir,name",
        n,
        lambda i, text: (i, f"https://example.org/videos/{i}.mp4", "PT00H00M12S", f"{i // 50:06d}_{i // 50:06d}", text),
    ),
    "nextqa": lambda path, n: _write_table(
        path,
        "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4",
        n,
        lambda i, text: (i // 9, 900, 640, 480, text, i % 5, i % 9, "CH", "one", "two", "three", "four", "five"),
    ),
    "tgif-qa": lambda path, n: _write_table(
        path,
        "gif_name,question,answer,type,vid_id,key,description",
        n,
        lambda i, text: (f"tumblr_{i // 3}", text, "two", 1, f"FRAMEQA{i}", i, text),
        "\t",
    ),
    "msvd-qa": lambda path, n: _write_json(
        path, n, lambda i, text: {"id": i, "video_id": i // 40, "question": text, "answer": "man"}, lines=False
    ),
    "video-chatgpt": lambda path, n: _write_json(
        path, n, lambda i, text: {"q": "What happens?", "a": text * 4, "video_id": f"v_{i // 8:011d}"}, lines=False
    ),
    "sharegptvideo": lambda path, n: _write_json(
        path,
        n,
        lambda i, text: {"id": f"v_{i}_1", "video": f"v_{i // 8}-Scene-001", "conversations": _conversation(text * 4)},
        lines=True,
    ),
    "linvt": lambda path, n: _write_json(
        path,
        n,
        lambda i, text: {"media": f"{i}.mp4", "caption": text, "qa": [{"question": text, "answer": "yes"}]},
        lines=True,
    ),
}


if __name__ == "__main__":
    main()
