"""Does it still work with millions of videos? Time, memory and objects of each step that is not decoding or arithmetic.

    python benchmarks/scale.py [--samples 300000 3000000] [--project 100000000] [--write docs/scale.md]

Simulated: the videos do not exist, and so no tars are written. What is measured is the code that every run goes
through: the plan, commit records, the index, opening it in a training worker, joining it with annotations, the order of
an epoch, and the batch at a cursor. Each step is a process of its own, which is ended when it takes more than
--memory-gb. Commit records are written and read for --record-shards shards and multiplied (*). The last columns are no
measurement: they go on straight from the two largest sizes to --project samples.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
SAMPLES_PER_SHARD = 64
BEGIN, END = "<!-- measured by benchmarks/scale.py -->", "<!-- end -->"
Facts = dict[str, Any]


def video_id(number: int) -> str:
    """As long as WebVid's."""
    return f"{number // 1000:06d}/{number:010d}.mp4"


def plan(folder: Path, samples: int, _: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    from linvt.extraction.inputs import Listing, MediaFile
    from linvt.extraction.plan import Plan, grow_plan, read_plan, write_plan
    from linvt.shards.layout import PLAN
    from linvt.shards.storage import open_storage

    def files() -> Iterator[MediaFile]:
        for number in range(samples):
            name = video_id(number)
            etag = f"{number:032x}"
            yield MediaFile(video_id=name, uri=f"s3://bucket/videos/{name}", size_bytes=number, modified=etag)

    storage = open_storage(str(folder))
    listing, seconds = timed(lambda: Listing.of(files()))
    yield "list, sorted", {"seconds": seconds}
    planned, seconds = timed(lambda: grow_plan(Plan(samples_per_shard=SAMPLES_PER_SHARD), listing))
    yield "plan", {"seconds": seconds}
    _, seconds = timed(lambda: write_plan(storage, planned))
    yield "hash and write plan.parquet", {"seconds": seconds, "bytes": storage.size_bytes(PLAN), "objects": 1}
    _, seconds = timed(lambda: read_plan(storage))
    yield "read and check plan.parquet", {"seconds": seconds}
    _, seconds = timed(lambda: len(planned.shards))
    yield "its shards", {"seconds": seconds}


def record_of(shard: int, samples: int) -> Any:
    from linvt.shards.commit import CommitRecord, CommittedSample, Member

    numbers = range(shard * SAMPLES_PER_SHARD, min(samples, (shard + 1) * SAMPLES_PER_SHARD))
    members = [
        CommittedSample(
            slot=number,
            # Keys are hashes: nothing about their order helps anybody.
            key=f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC835) % 2**128:032x}",
            video_id=video_id(number),
            uri=f"s3://bucket/videos/{video_id(number)}",
            sha256=f"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835:064x}"[-64:],
            kind="video",
            shape=(64, 196, 1536),
            grid=(14, 14),
            duration_s=10.0 + number % 50,
            info=Member(offset=512, size_bytes=3000, sha256=f"{number:064x}"),
            tokens=Member(offset=4096, size_bytes=38_535_168, sha256=f"{number:064x}"),
        )
        for number in numbers
    ]
    members.sort(key=lambda member: member.key)
    return CommitRecord(
        shard=shard,
        generation=0,
        plan_hash="0" * 64,
        feature_id="f" * 32,
        devices=("NVIDIA L40S",),
        num_slots=len(members),
        tar_size_bytes=sum(member.tokens.size_bytes for member in members),
        tar_sha256="0" * 64,
        samples=tuple(members),
        tombstones=(),
    )


def records(folder: Path, samples: int, options: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    from linvt.read_ahead import read_ahead
    from linvt.shards.commit import commit_shard, read_record
    from linvt.shards.layout import record_name
    from linvt.shards.storage import open_storage

    storage = open_storage(str(folder))
    num_shards = -(-samples // SAMPLES_PER_SHARD)
    written = min(num_shards, options.record_shards)
    factor = num_shards / written
    made = [record_of(shard, samples) for shard in range(written)]
    _, seconds = timed(lambda: [commit_shard(storage, record) for record in made])
    size = sum(storage.size_bytes(record_name(shard)) or 0 for shard in range(written))
    yield (
        "write commit records",
        {"seconds": factor * seconds, "bytes": factor * size, "objects": num_shards, "multiplied": factor > 1},
    )
    look = read_ahead(lambda shard: read_record(storage, shard), range(written), depth=64, threads=16)
    _, seconds = timed(lambda: sum(1 for _ in look))
    yield "read commit records (resume)", {"seconds": factor * seconds, "multiplied": factor > 1}


def index(folder: Path, samples: int, _: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    from linvt.shards.index import write_index
    from linvt.shards.layout import INDEX
    from linvt.shards.storage import open_storage

    storage = open_storage(str(folder))
    num_shards = -(-samples // SAMPLES_PER_SHARD)
    _, seconds = timed(lambda: write_index(storage, (record_of(shard, samples) for shard in range(num_shards))))
    yield "write index.parquet", {"seconds": seconds, "bytes": storage.size_bytes(INDEX), "objects": 1}


def open_cache(folder: Path, samples: int, _: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    from linvt.shards import read_cache

    cache, seconds = timed(lambda: read_cache(str(folder)))
    yield "open the index", {"seconds": seconds, "bytes": cache.index.nbytes}
    wanted = [cache.keys[row] for row in range(0, samples, max(1, samples // 1000))]
    _, seconds = timed(lambda: cache.row_of)
    yield "make keys findable", {"seconds": seconds}
    _, seconds = timed(lambda: [cache.row_of(key) for key in wanted])
    yield "find a thousand keys", {"seconds": seconds}


def start_up(folder: Path, samples: int, _: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    from linvt.training.config import TrainConfig
    from linvt.training.loop import load_visits
    from linvt.training.order import SampleStream

    annotations = folder / "captions.jsonl"
    with annotations.open("w") as file:
        for number in range(samples):
            row = {"media": video_id(number), "kind": "video", "caption": f"somebody does thing number {number}"}
            file.write(json.dumps(row) + "\n")
    config = TrainConfig(
        stage=1, cache=str(folder), annotations=(str(annotations),), backbone="tiny", out=str(folder / "run")
    )
    visits, seconds = timed(lambda: load_visits(config))
    yield "join cache and annotations", {"seconds": seconds}
    batch = config.visits_per_batch
    stream, seconds = timed(
        lambda: SampleStream(visits.shards, visits.lengths, seed=0, window_shards=16, batch_size=batch)
    )
    yield "columns of the visits", {"seconds": seconds}
    middle = samples // 2 // batch * batch
    _, seconds = timed(lambda: stream.batch(middle))
    yield "first batch at a cursor (orders the epoch)", {"seconds": seconds}
    _, seconds = timed(lambda: stream.batch(middle + batch))
    yield "the next batch", {"seconds": seconds}
    _, seconds = timed(lambda: visits.fingerprint)
    yield "fingerprint of the visits", {"seconds": seconds}


def order(folder: Path, samples: int, _: argparse.Namespace) -> Iterator[tuple[str, Facts]]:
    import numpy as np

    from linvt.training.order import SampleStream

    shards = np.arange(samples) // SAMPLES_PER_SHARD
    lengths = np.arange(samples) * 31 % 64 + 1
    stream = SampleStream(shards, lengths, seed=0, window_shards=16, batch_size=32)
    _, seconds = timed(lambda: stream.batch(samples // 2 // 32 * 32))
    yield "order of an epoch alone", {"seconds": seconds}


STEPS: dict[str, Callable[[Path, int, argparse.Namespace], Iterator[tuple[str, Facts]]]] = {
    "plan": plan,
    "records": records,
    "index": index,
    "open": open_cache,
    "start-up": start_up,
    "order": order,
}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, nargs="+", default=[300_000, 3_000_000])
    parser.add_argument("--project", type=int, default=100_000_000)
    parser.add_argument("--record-shards", type=int, default=1000, help="commit records that are really written")
    parser.add_argument("--memory-gb", type=float, default=6.0, help="a step that takes more is ended")
    parser.add_argument("--write", type=Path, help="replace the table in this file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        for name, facts in STEPS[options.step](options.folder, options.samples[0], options):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            print(json.dumps({"name": name, "peak_bytes": peak, **facts}), flush=True)
        return
    found: dict[int, list[Facts]] = {}
    for samples in sorted(options.samples):
        with tempfile.TemporaryDirectory() as folder:
            found[samples] = [line for step in STEPS for line in run_step(step, Path(folder), samples, options)]
    text = table(found, options.project)
    print(text)
    if options.write:
        page = options.write.read_text()
        before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
        options.write.write_text(f"{before}\n\n{text}\n\n{after}")


def run_step(step: str, folder: Path, samples: int, options: argparse.Namespace) -> list[Facts]:
    """The lines of a step; one that says so where it took too much memory or failed."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder), "--samples", str(samples)]
    command += ["--record-shards", str(options.record_shards)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                if watched.memory_info().rss > options.memory_gb * 1e9:
                    process.kill()
                process.wait(0.2)
            except (subprocess.TimeoutExpired, psutil.Error):
                continue
        assert process.stdout is not None
        lines = [json.loads(line) for line in process.stdout]
    if process.returncode < 0:
        lines.append({"name": f"{step}: more than {options.memory_gb:g} GB", "failed": True})
    elif process.returncode:
        sys.exit(f"step {step} failed with {process.returncode}")
    for line in lines:
        print(f"{samples}: {json.dumps(line)}", file=sys.stderr, flush=True)
    return lines


def table(found: dict[int, list[Facts]], project: int) -> str:
    """Markdown: a row a step, three columns a size."""
    sizes = sorted(found)
    heads = [f"{size:,}" for size in sizes] + ([f"{project:,} (projected)"] if len(sizes) > 1 else [])
    lines = ["| step |" + "".join(f" {head}: s | peak GB | written GB, objects |" for head in heads)]
    lines.append("|---|" + "---|" * 3 * len(heads))
    for name in [line["name"] for line in found[sizes[-1]]]:
        of_size = [next((line for line in found[size] if line["name"] == name), None) for size in sizes]
        cells = [cell(line) for line in of_size]
        if len(sizes) > 1:
            cells.append(cell(projected(of_size[-2], of_size[-1], (project - sizes[-2]) / (sizes[-1] - sizes[-2]))))
        lines.append(f"| {name} |{''.join(cells)}")
    return "\n".join(lines)


def projected(smaller: Facts | None, larger: Facts | None, factor: float) -> Facts | None:
    """The straight line through two sizes."""
    if smaller is None or larger is None or "failed" in smaller or "failed" in larger:
        return larger and {"failed": True}
    line: Facts = {"multiplied": larger.get("multiplied", False)}
    for name in ("seconds", "peak_bytes", "bytes", "objects"):
        if name in larger:
            line[name] = max(larger[name], smaller[name] + factor * (larger[name] - smaller[name]))
    return line


def cell(line: Facts | None) -> str:
    if line is None or line.get("failed"):
        return " | | |" if line is None else " ended | | |"
    written = f"{line['bytes'] / 1e9:.2f}, {round(line['objects']):,}" if "objects" in line else ""
    return f" {line['seconds']:.3g}{'*' * line.get('multiplied', False)} | {line['peak_bytes'] / 1e9:.2f} | {written} |"


if __name__ == "__main__":
    main()
