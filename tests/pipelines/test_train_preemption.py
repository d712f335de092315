"""A machine that is taken away with notice, on a cluster of three nodes."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from linvt.training.checkpoint import latest_checkpoint, step_of
from linvt.training.metrics import METRICS_FILE, last_training_line
from pipelines.train import train
from tests.pipelines.test_train import _command, _final_tensors, _losses
from tests.training.inputs import small_config, write_inputs

REPOSITORY = Path(__file__).parents[2]
NUM_STEPS = 40


@pytest.mark.ray
@pytest.mark.slow
def test_a_drained_node_s_run_is_saved_in_time_and_goes_on_elsewhere(tmp_path):
    from ray.cluster_utils import Cluster

    inputs = write_inputs(tmp_path / "inputs")
    # By itself it would save at the end only.
    config = small_config(inputs, tmp_path / "out", steps=NUM_STEPS, save_every=1000, num_workers="1")
    whole = replace(config, out=str(tmp_path / "whole"), num_workers="0")
    train(whole)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2"}
        errors = tmp_path / "errors"
        with errors.open("w") as file:
            job = subprocess.Popen(_command(config), cwd=REPOSITORY, env=environment, stdout=file, stderr=file)
        while last_training_line(tmp_path / "out" / METRICS_FILE) is None:
            assert job.poll() is None, errors.read_text()
            time.sleep(0.02)
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", cluster.address]
        why = [
            "--reason",
            "DRAIN_NODE_REASON_PREEMPTION",
            "--reason-message",
            "spot",
            "--deadline-remaining-seconds",
            "5",
        ]
        subprocess.run([*drain, "--node-id", node.node_id, *why], check=True, capture_output=True)
        while (saved := latest_checkpoint(tmp_path / "out")) is None:
            assert job.poll() is None, errors.read_text()
            time.sleep(0.02)
        assert step_of(saved) < NUM_STEPS
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        assert job.wait(timeout=300) == 0, errors.read_text()
    finally:
        cluster.shutdown()
    assert _losses(config.out) == _losses(whole.out)
    after, uninterrupted = _final_tensors(config.out), _final_tensors(whole.out)
    assert all(torch.equal(after[name], tensor) for name, tensor in uninterrupted.items())
