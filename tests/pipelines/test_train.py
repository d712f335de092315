import json
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import psutil
import pytest
import torch

from linvt.training.checkpoint import latest_checkpoint, load_checkpoint
from linvt.training.config import TrainConfig, to_json
from linvt.training.metrics import read_metrics
from linvt.video_llm import VideoLLM
from pipelines.train import train
from tests.training.inputs import annotation_row, small_config, write_inputs, write_rows

REPOSITORY = Path(__file__).parents[2]
NUM_STEPS = 40


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def plain(inputs, tmp_path_factory):
    """A run of this process, without Ray."""
    config = small_config(inputs, tmp_path_factory.mktemp("plain") / "out", steps=NUM_STEPS)
    return config, train(config)


def _command(config: TrainConfig) -> list[str]:
    flags = []
    for field in fields(TrainConfig):
        value = getattr(config, field.name)
        if value is None or value == field.default:
            continue
        flags.append(f"--{field.name.replace('_', '-')}")
        flags += [str(item) for item in value] if isinstance(value, tuple) else [str(value)]
    return [sys.executable, "jobs/train.py", *flags]


def _losses(out: str) -> list[tuple[float, float]]:
    lines = read_metrics(Path(out) / "metrics.jsonl")
    return [(line["loss"], line["grad_norm"]) for line in lines if "loss" in line]


def _final_tensors(out: str) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(Path(out))
    assert path is not None
    return load_checkpoint(path)[1]


def _kill_once_it_has_a_checkpoint(command: list[str], out: Path) -> None:
    """Start a run, and kill it with everything it started."""
    log = out.with_name("log")
    with log.open("w") as file:
        process = psutil.Popen(command, cwd=REPOSITORY, stdout=file, stderr=file, start_new_session=True)
        while latest_checkpoint(out) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        started = process.children(recursive=True)
        for one in (process, *started):
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
        psutil.wait_procs(started)


@pytest.fixture(scope="module")
def killed(inputs, tmp_path_factory) -> TrainConfig:
    """A run on two Ray workers that was killed."""
    out = tmp_path_factory.mktemp("killed") / "out"
    config = small_config(inputs, out, steps=NUM_STEPS, num_workers="2")
    _kill_once_it_has_a_checkpoint(_command(config), out)
    return config


@pytest.fixture(scope="module")
def on_ray(killed, ray_cluster, tmp_path_factory) -> tuple[TrainConfig, dict]:
    """The same run on two Ray workers, undisturbed."""
    config = replace(killed, out=str(tmp_path_factory.mktemp("whole") / "out"))
    return config, train(config)


@pytest.mark.ray
def test_a_killed_run_goes_on_where_it_was_bit_for_bit(killed, on_ray, plain, ray_cluster):
    step_of_kill = load_checkpoint(latest_checkpoint(Path(killed.out)))[0].cursor.step
    assert 0 < step_of_kill < NUM_STEPS
    assert not (Path(killed.out) / "summary.json").exists()
    resumed = train(replace(killed, on_existing="resume"))

    whole_config, whole = on_ray
    timing = ("seconds", "model")
    assert {k: v for k, v in resumed.items() if k not in timing} == {k: v for k, v in whole.items() if k not in timing}
    assert _losses(killed.out) == _losses(whole_config.out)
    after_resume, uninterrupted = _final_tensors(killed.out), _final_tensors(whole_config.out)
    assert after_resume.keys() == uninterrupted.keys()
    assert all(torch.equal(after_resume[name], tensor) for name, tensor in uninterrupted.items())

    # Two workers compute what one process does, but for the order of sums.
    for (loss, norm), (plain_loss, plain_norm) in zip(_losses(whole_config.out)[:8], _losses(plain[0].out)[:8]):
        assert loss == pytest.approx(plain_loss, rel=1e-4)
        assert norm == pytest.approx(plain_norm, rel=1e-3)


def _torchrun(config: TrainConfig) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return [*launcher, *_command(config)[1:]]


@pytest.mark.ray
@pytest.mark.slow
def test_torchrun_trains_as_ray_does_bit_for_bit_also_killed_and_resumed(on_ray, tmp_path):
    ray_config, summary = on_ray
    config = replace(ray_config, out=str(tmp_path / "out"), num_workers="0")
    _kill_once_it_has_a_checkpoint(_torchrun(config), tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()
    command = _torchrun(replace(config, on_existing="resume"))
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.stdout.splitlines()[-1] == line
    differing = {"seconds": None, "model": None}
    assert json.loads(line) | differing == summary | differing
    assert _losses(config.out) == _losses(ray_config.out)
    ours, rays = _final_tensors(config.out), _final_tensors(ray_config.out)
    assert ours.keys() == rays.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in rays.items())


@pytest.mark.slow
def test_under_torchrun_one_worker_says_what_is_wrong_and_all_stop(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "out", annotations=(str(tmp_path / "none.jsonl"),))
    done = subprocess.run(_torchrun(config), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stdout.splitlines()
    assert "none.jsonl" in json.loads(line)["error"]


def _stop_once_it_has_a_checkpoint(command: list[str], out: Path) -> tuple[int, str]:
    """Start a run and send it SIGTERM; its exit code and its last line of stdout."""
    log, errors = out.with_name("log"), out.with_name("errors")
    with log.open("w") as file, errors.open("w") as error_file:
        process = subprocess.Popen(command, cwd=REPOSITORY, stdout=file, stderr=error_file)
        while latest_checkpoint(out) is None:
            assert process.poll() is None, errors.read_text()
            time.sleep(0.02)
        process.terminate()
        code = process.wait(timeout=120)
    return code, log.read_text().splitlines()[-1]


@pytest.mark.ray
@pytest.mark.slow
def test_sigterm_on_ray_leaves_a_checkpoint_to_go_on_from(inputs, plain, tmp_path):
    config = replace(plain[0], out=str(tmp_path / "out"), num_workers="1", save_every=2)
    code, line = _stop_once_it_has_a_checkpoint(_command(config), tmp_path / "out")
    assert code == 143, (tmp_path / "errors").read_text()
    step = load_checkpoint(latest_checkpoint(tmp_path / "out"))[0].cursor.step
    assert 2 <= step < NUM_STEPS
    outcome = json.loads(line)
    assert outcome["error_class"] == "Stopped"
    assert f"has a checkpoint of step {step}; run the same command with --on-existing resume" in outcome["error"]
    # Without Ray it goes on to the same end.
    train(replace(config, num_workers="0", on_existing="resume"))
    assert _losses(config.out) == _losses(plain[0].out)
    resumed, whole = _final_tensors(config.out), _final_tensors(plain[0].out)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_sigterm_under_torchrun_leaves_a_checkpoint(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "out", steps=100_000, save_every=5, log_every=100_000)
    code, line = _stop_once_it_has_a_checkpoint(_torchrun(config), tmp_path / "out")
    assert code != 0
    step = load_checkpoint(latest_checkpoint(tmp_path / "out"))[0].cursor.step
    assert f"has a checkpoint of step {step}; run" in json.loads(line)["error"]


def test_torchrun_and_ray_at_once_are_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    with pytest.raises(ValueError, match="--num-workers 2 asks for Ray; under torchrun, ask for 0"):
        train(small_config(inputs, tmp_path / "out", num_workers="2"))


@pytest.mark.ray
def test_what_a_worker_raises_reaches_the_user(ray_cluster, tmp_path):
    inputs = write_inputs(tmp_path / "inputs", num_videos=8, nan_video=3)
    config = small_config(inputs, tmp_path / "out", num_workers="1")
    with pytest.raises(FloatingPointError, match=r"the loss of step \d is not finite"):
        train(config)
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_outcome(plain):
    config, summary = plain
    assert summary["stage"] == 1
    assert (summary["steps"], summary["samples"], summary["left_out"]) == (NUM_STEPS, 4 * NUM_STEPS, 0)
    assert summary["loss_last"] < summary["loss_first"]
    assert summary["seconds"] > 0
    model = VideoLLM.from_pretrained(summary["model"], parts=("llm",))
    assert model.video_tokenizer.config.num_queries == (4, 2)
    assert json.loads((Path(config.out) / "summary.json").read_text()) == summary
    assert json.loads((Path(config.out) / "config.json").read_text()) == to_json(config)
    assert (Path(config.out) / "left_out.jsonl").read_text() == ""
    assert "Finished." in (Path(config.out) / "report.html").read_text()
    assert (Path(config.out) / "loss.png").is_file()
    card = (Path(config.out) / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: linvt\n")
    for told in (
        "| steps | 40 of 4 visits |",
        "`annotations.jsonl`",
        "14, and 0 annotated media left out",
        "--linvt-top-k 8",
    ):
        assert told in card
    (source,) = json.loads((Path(config.out) / "mixture.json").read_text())
    assert (source["annotations"], source["samples"], source["samples_per_epoch"]) == (config.annotations[0], 14, 14)


def test_a_finished_run_is_not_done_again(plain):
    config, summary = plain
    with pytest.raises(ValueError, match="already holds a run; go on with it by --on-existing resume"):
        train(config)
    lines = (Path(config.out) / "metrics.jsonl").read_bytes()
    assert train(replace(config, on_existing="resume")) == summary
    assert (Path(config.out) / "metrics.jsonl").read_bytes() == lines


def test_resuming_with_other_settings_is_refused(plain):
    with pytest.raises(ValueError, match=r"holds a run with other settings: --seed: 0 then, 1 now\. Ask for the same"):
        train(replace(plain[0], on_existing="resume", seed=1))


def test_overwriting_starts_over_and_keeps_what_is_not_ours(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "out", steps=3)
    train(config)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    train(replace(config, steps=2, on_existing="overwrite"))
    assert [line["step"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")] == [1, 2]
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert latest_checkpoint(tmp_path / "out").name == "step-00000002"


def test_missing_videos_fail_before_any_worker_starts(inputs, tmp_path):
    annotations = tmp_path / "annotations.jsonl"
    write_rows(annotations, [annotation_row(f"videos/{i:03d}.mp4", "red") for i in (0, 1, 2, 77)])
    config = small_config(inputs, tmp_path / "out", annotations=(str(annotations),), num_workers="2")
    with pytest.raises(ValueError, match=r"1 of 4 annotated media.*videos/077\.mp4 \(not in the cache\)"):
        train(config)

    lenient = replace(config, max_left_out_share=0.25, num_workers="0", steps=1, on_existing="resume")
    with pytest.raises(ValueError, match=r"--steps: 6 then, 1 now"):
        train(lenient)
    summary = train(replace(lenient, on_existing="overwrite"))
    assert summary["left_out"] == 1
    (line,) = (tmp_path / "out" / "left_out.jsonl").read_text().splitlines()
    expected = {"media_id": "videos/077.mp4", "reason": "not in the cache", "file": str(annotations)}
    assert json.loads(line) == expected


def test_a_broken_annotation_is_named(inputs, tmp_path):
    annotations = tmp_path / "broken.jsonl"
    annotations.write_text(json.dumps(annotation_row("videos/000.mp4", "red")) + "\n" + '{"media": "videos/001.mp4"}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl:2: neither a caption nor a question"):
        train(small_config(inputs, tmp_path / "out", annotations=(str(annotations),)))


def test_a_uri_is_no_run_folder(inputs):
    with pytest.raises(ValueError, match="s3://bucket/run: a run's folder is a path"):
        train(small_config(inputs, "s3://bucket/run"))


def test_the_command_ends_with_one_json_line(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "out", steps=2)
    done = subprocess.run(_command(config), cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (summary["stage"], summary["steps"], summary["samples"]) == (1, 2, 8)
    again = subprocess.run(_command(config), cwd=REPOSITORY, capture_output=True, text=True)
    assert again.returncode == 1
    assert "already holds a run" in json.loads(again.stdout.splitlines()[-1])["error"]
