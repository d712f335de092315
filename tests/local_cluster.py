"""Ray clusters of several nodes on this machine, each with its own ports, processes, folder and token.

Nothing here calls `ray stop`, which would end the clusters of others, too.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

REPOSITORY = Path(__file__).parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
_STORE = f"--object-store-memory={100 * 1024**2}"


@dataclass(frozen=True, slots=True, eq=False)
class LocalCluster:
    """A head, and the nodes that were added."""

    job_server: str
    gcs_address: str
    environment: dict[str, str]
    """What a process needs to be let in: the token, and where the head is."""
    folder: Path
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def ray(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`ray …` with the token."""
        return subprocess.run(
            [RAY, *arguments], env=self.environment, capture_output=True, text=True, timeout=300, check=check
        )

    def add_node(self, name: str, *, num_cpus: int, resources: Mapping[str, float] | None = None) -> None:
        """Starts a raylet with the resource `name`, and whatever others, and waits until it runs."""
        ports = free_ports(4)
        command = [
            *(RAY, "start", "--block", f"--address={self.gcs_address}", "--node-ip-address=127.0.0.1"),
            *(f"--num-cpus={num_cpus}", f"--resources={json.dumps({name: 1.0, **(resources or {})})}", _STORE),
            *(f"--dashboard-agent-listen-port={ports[0]}", f"--dashboard-agent-grpc-port={ports[1]}"),
            *(f"--metrics-export-port={ports[2]}", f"--runtime-env-agent-port={ports[3]}", "--disable-usage-stats"),
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            node = self.nodes[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        while "Ray runtime started" not in (self.folder / f"{name}.log").read_text():
            with suppress(subprocess.TimeoutExpired):
                node.wait(0.1)
                pytest.fail(f"the node {name} did not start: {(self.folder / f'{name}.log').read_text()}")

    def kill_node(self, name: str) -> None:
        """SIGKILL to a node's raylet; Ray's processes there end by themselves."""
        self.raylet_of(name).send_signal(signal.SIGKILL)
        self.nodes.pop(name).wait()

    def raylet_of(self, name: str) -> psutil.Process:
        (raylet,) = (child for child in psutil.Process(self.nodes[name].pid).children() if child.name() == "raylet")
        return raylet

    def workers_on(self, name: str) -> list[str]:
        """What Ray calls the workers of a node, such as `ray::MapWorker(MapBatches(Encoder))`."""
        return [" ".join(child.cmdline()) for child in self.raylet_of(name).children()]


@contextmanager
def local_cluster(*, num_cpus: int, options: tuple[str, ...] = (), **environment: str) -> Iterator[LocalCluster]:
    """A head that asks for a token; all of its nodes end with the block."""
    ports = free_ports(7)
    # Unix sockets live below the folder, and their paths may have 107 characters at most: too few for tmp_path.
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    gcs_address, job_server = f"127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}"
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    where = {"RAY_ADDRESS": gcs_address, "RAY_API_SERVER_ADDRESS": job_server}
    variables: dict[str, str] = os.environ | token | where | environment
    command = [
        *(RAY, "start", "--head", "--block", "--disable-usage-stats", f"--num-cpus={num_cpus}", _STORE),
        *(f"--temp-dir={folder}", "--node-ip-address=127.0.0.1", f"--port={ports[0]}", f"--dashboard-port={ports[1]}"),
        *(f"--ray-client-server-port={ports[2]}", f"--dashboard-agent-listen-port={ports[3]}"),
        *(f"--dashboard-agent-grpc-port={ports[4]}", f"--metrics-export-port={ports[5]}"),
        *(f"--runtime-env-agent-port={ports[6]}", *options),
    ]
    # The head itself starts no cluster that it could find by an address.
    without_address = {name: value for name, value in variables.items() if name not in where}
    log = folder / "head.log"
    with log.open("wb") as output:
        head = subprocess.Popen(command, env=without_address, stdout=output, stderr=output)
    cluster = LocalCluster(job_server, gcs_address, variables, folder)
    try:
        _wait_until_ready(cluster, head, log)
        yield cluster
    finally:
        processes = (*cluster.nodes.values(), head)
        for process in processes:
            process.terminate()
        for process in processes:
            _wait_for_end(process)
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def outcome_of(output: str) -> dict[str, Any]:
    """The JSON line that a job ends with; `ray job submit` prints lines of its own after it."""
    return [json.loads(line) for line in output.splitlines() if line.startswith('{"')][-1]


def _wait_until_ready(cluster: LocalCluster, head: subprocess.Popen[bytes], log: Path) -> None:
    listed = None
    for _ in range(60):
        listed = cluster.ray("job", "list", check=False)
        if listed.returncode == 0:
            return
        if head.poll() is not None:
            break
    pytest.fail(f"no job server came up: {listed and listed.stderr[-2000:]}\n{log.read_text()[-2000:]}")


def _wait_for_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
