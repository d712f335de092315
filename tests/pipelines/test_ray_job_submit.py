"""The job as users submit it: `ray start --head`, then `ray job submit --working-dir . -- python jobs/…`."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest

from linvt.shards import read_cache
from tests.media import write_video

pytestmark = pytest.mark.ray
REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))


@pytest.fixture
def cluster():
    """(address, environment) of a head node with its own ports, folder and token; it ends with its own process."""
    ports = _free_ports(6)
    # Unix sockets live below the folder, and their paths may have 107 characters at most: too few for tmp_path.
    temporary = tempfile.mkdtemp(prefix="ray-")
    address = f"http://127.0.0.1:{ports[1]}"
    environment = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment.pop("RAY_ADDRESS", None)
    command = [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", "--num-cpus=2", f"--temp-dir={temporary}"),
        *("--node-ip-address=127.0.0.1", f"--port={ports[0]}", f"--dashboard-port={ports[1]}"),
        *(f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}"),
        *(f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}"),
        f"--object-store-memory={200 * 1024**2}",
    ]
    log = Path(temporary, "head.log")
    with log.open("wb") as output, subprocess.Popen(command, env=environment, stdout=output, stderr=output) as head:
        try:
            _wait_until_ready(head, address, environment, log)
            yield address, environment
        finally:
            head.terminate()
            head.wait(timeout=60)
    shutil.rmtree(temporary, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def _wait_until_ready(head: subprocess.Popen, address: str, environment: dict[str, str], log: Path) -> None:
    for _ in range(60):
        listed = subprocess.run(
            [RAY, "job", "list", "--address", address], env=environment, capture_output=True, text=True, timeout=120
        )
        if listed.returncode == 0:
            return
        if head.poll() is not None:
            break
    pytest.fail(f"no job server came up: {listed.stderr[-2000:]}\n{log.read_text()[-2000:]}")


def _submit(address: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(REPOSITORY), "--"]
    return subprocess.run(
        [*command, sys.executable, "jobs/extract_features.py", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_submitted_job_extracts_and_a_failing_one_says_so(cluster, tiny_llava, tmp_path):
    address, environment = cluster
    for i in range(3):
        write_video(tmp_path / f"videos/{i}.mp4", shot_lengths=(8, 8), seed=i)
    out = tmp_path / "out"
    flags = ["--backbone", tiny_llava, "--out", str(out), "--num-frames", "4", "--encode-batch-size", "4"]

    done = _submit(address, environment, "--videos", str(tmp_path / "videos"), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = next(json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"inputs"'))
    assert (outcome["inputs"], outcome["committed"], outcome["shards"]) == (3, 3, 1)
    assert sorted(read_cache(str(out)).video_ids) == ["0.mp4", "1.mp4", "2.mp4"]

    failed = _submit(address, environment, "--videos", str(tmp_path / "videos"), *flags)
    assert failed.returncode != 0
    assert "already holds an extraction" in failed.stdout
