"""`jobs/serve.py` as a person starts it: in a process and a Ray cluster of its own."""

import json
import signal
import socket
import subprocess
import sys

import openai
import pytest

from linvt.backbones import load_backbone
from linvt.video_llm import VideoLLM
from linvt.video_tokenizer import LinVT, LinVTConfig


@pytest.mark.ray
def test_it_serves_until_it_is_told_to_stop(tmp_path, tiny_llava):
    """Ready, one answer, SIGTERM, one line of JSON."""
    config = LinVTConfig(hidden_size=64, num_queries=(4, 2), windows=(1, 2), num_layers=1, num_heads=4, top_k=200)
    VideoLLM(load_backbone(tiny_llava, parts={"llm"}), LinVT(config)).save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "jobs/serve.py", "--model", str(tmp_path / "model"), "--port", str(port)]
    command += ["--detector", "none"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stderr is not None
        try:
            log = []
            for line in job.stderr:
                log.append(line)
                if "ready: " in line:
                    break
            assert log[-1].rstrip().endswith(f"ready: http://127.0.0.1:{port}/v1 (model 'linvt')"), "".join(log)
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
            question = [{"role": "user", "content": "what is red ?"}]
            assert client.chat.completions.create(model="linvt", messages=question).choices[0].message.content
            job.send_signal(signal.SIGTERM)
            stdout, _ = job.communicate()
        finally:
            job.kill()
    outcome = json.loads(stdout.splitlines()[-1])
    assert job.returncode == 0
    assert outcome["stopped_by"] == "SIGTERM"
    assert outcome["url"] == f"http://127.0.0.1:{port}/v1"


def test_a_model_that_is_none_fails_with_json(tmp_path):
    command = [sys.executable, "jobs/serve.py", "--model", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["error_class"] == "ValueError"
    assert "no config.json" in outcome["error"]
