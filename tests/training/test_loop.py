import os
import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from linvt.backbones import load_backbone
from linvt.training.checkpoint import latest_checkpoint, load_checkpoint
from linvt.training.config import TrainConfig
from linvt.training.context import PlainContext, plain_context
from linvt.training.guards import TrainingFailed
from linvt.training.loop import train
from linvt.training.metrics import read_metrics
from linvt.training.model import build_model
from linvt.video_llm import VideoLLM
from tests.tiny_models import save_tiny_llava
from tests.training.inputs import annotation_row, small_config, write_inputs, write_rows

REPRODUCIBLE = ("step", "samples", "epoch", "loss", "loss_answer", "loss_contrastive", "learning_rate", "grad_norm")


class WorkerLost(Exception):
    pass


class ShortLivedContext(PlainContext):
    """A worker that is lost when it reports a step."""

    lost_at = 0

    def report(self, metrics):
        if metrics["step"] == self.lost_at:
            raise WorkerLost


def run(config: TrainConfig, *, lost_at: int | None = None) -> Path:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    with plain_context(out) as context:
        if lost_at is None:
            train(config, context)
        else:
            ShortLivedContext.lost_at = lost_at
            fields = ("rank", "world_size", "local_rank", "device", "run_dir")
            with pytest.raises(WorkerLost):
                train(config, ShortLivedContext(**{name: getattr(context, name) for name in fields}))
    return out


def final_tensors(out: Path) -> dict[str, torch.Tensor]:
    path = latest_checkpoint(out)
    assert path is not None
    return load_checkpoint(path)[1]


def reproducible_lines(out: Path) -> list[dict]:
    return [{name: line.get(name) for name in REPRODUCIBLE} for line in read_metrics(out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def stage_1(inputs, tmp_path_factory):
    config = small_config(inputs, tmp_path_factory.mktemp("stage-1") / "out", steps=12, learning_rate=1e-2)
    return config, run(config)


@pytest.fixture(scope="module")
def stage_2(inputs, stage_1, tmp_path_factory):
    config = small_config(
        inputs,
        tmp_path_factory.mktemp("stage-2") / "out",
        stage=2,
        init_from=str(stage_1[1] / "model"),
        eval_annotations=(inputs.annotations,),
        eval_visits=6,
        eval_answers=4,
        lora_dropout=0.2,
        learning_rate=1e-2,
    )
    return config, run(config)


def test_both_stages_learn(stage_1, stage_2):
    # A random LLM that stays frozen (stage 1) can be helped only so much.
    for (_, out), share in ((stage_1, 0.97), (stage_2, 0.8)):
        losses = [line["loss_answer"] for line in read_metrics(out / "metrics.jsonl") if "loss" in line]
        assert sum(losses[-3:]) < share * sum(losses[:3])


def test_the_lines_tell_how_it_went(stage_2):
    lines = read_metrics(stage_2[1] / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    for line in lines[:-1]:
        assert line["samples"] == 4 * line["step"]
        assert line["tokens_per_s"] > line["samples_per_s"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert line["model_flops_per_s"] > 0
        assert line["peak_memory_bytes"] > 1e7
    assert lines[-1]["step"] == 6
    assert lines[-1]["eval_loss"] > 0
    assert 0 <= lines[-1]["eval_accuracy"] <= 1
    assert list((stage_2[1] / "tensorboard").iterdir())


@pytest.mark.parametrize("stage", [1, 2])
def test_a_checkpoint_holds_what_trains_and_nothing_else(stage, stage_1, stage_2):
    config, out = (stage_1, stage_2)[stage - 1]
    folder = latest_checkpoint(out)
    names = set(load_file(folder / "trainable.safetensors"))
    model = build_model(config, torch.device("cpu"))
    assert names == {f"weights.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert any("video_tokenizer" in name for name in names)
    assert any("contrastive" in name for name in names) == (stage == 1)
    assert any("lora" in name for name in names) == (stage == 2)
    assert not any("backbone" in name and "lora" not in name for name in names)
    moments = set(load_file(folder / "optimizer.safetensors"))
    assert moments == {name.replace("weights", kind) for name in names for kind in ("exp_avg", "exp_avg_sq")}
    assert {file.name for file in folder.iterdir()} == {
        "trainable.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_the_final_model_is_the_trained_one_on_an_untouched_image_llm(stage_2, inputs):
    _, out = stage_2
    model = VideoLLM.from_pretrained(out / "model", parts=("llm",))
    weights = final_tensors(out)
    for name, tensor in model.video_tokenizer.state_dict().items():
        assert torch.equal(tensor, weights[f"weights.video_tokenizer.{name}"])
    trained = dict(model.named_parameters())
    lora = [name for name in weights if name.startswith("weights.") and "lora" in name]
    assert lora
    for name in lora:
        assert torch.equal(trained[name.removeprefix("weights.")], weights[name])
        if "lora_B" in name:  # Starts at zero.
            assert weights[name].abs().sum() > 0
    fresh = load_backbone(inputs.backbone, parts=("llm",)).model.state_dict()
    loaded = {
        name.replace("base_layer.", ""): p for name, p in model.backbone.model.get_base_model().state_dict().items()
    }
    assert all(torch.equal(loaded[name], tensor) for name, tensor in fresh.items())


@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(stage, inputs, stage_1, stage_2, tmp_path):
    config, whole = (stage_1, stage_2)[stage - 1]
    config = replace(config, out=str(tmp_path / "out"), eval_annotations=())
    # Lost after step 5's update; the latest checkpoint is of step 4.
    out = run(config, lost_at=5)
    state, _ = load_checkpoint(latest_checkpoint(out))
    assert (state.cursor.step, state.cursor.samples_consumed) == (4, 16)
    assert not (out / "model").exists()
    run(config)
    resumed, uninterrupted = final_tensors(out), final_tensors(whole)
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)
    lines = [line for line in reproducible_lines(whole) if line["loss"] is not None]
    assert reproducible_lines(out) == lines
    for file in ("linvt.safetensors", *(["adapter/adapter_model.safetensors"] if stage == 2 else [])):
        assert (out / "model" / file).read_bytes() == (whole / "model" / file).read_bytes()


def test_another_seed_is_another_run(stage_1, tmp_path):
    config, whole = stage_1
    other = run(replace(config, out=str(tmp_path / "out"), seed=1, steps=2))
    assert reproducible_lines(other)[0]["loss"] != reproducible_lines(whole)[0]["loss"]


def test_resuming_on_changed_annotations_is_refused(inputs, tmp_path):
    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text(Path(inputs.annotations).read_text())
    config = small_config(inputs, tmp_path / "out", annotations=(str(annotations),))
    run(config, lost_at=3)
    write_rows(annotations, [annotation_row(f"videos/{i:03d}.mp4", "red") for i in range(14)])
    with pytest.raises(ValueError, match="was trained on other samples"):
        run(config)


def test_a_loss_that_is_not_finite_stops_the_run_before_the_update(tmp_path):
    inputs = write_inputs(tmp_path, num_videos=12, nan_video=5)
    config = small_config(inputs, tmp_path / "out", steps=3, save_every=1)
    with pytest.raises(FloatingPointError, match=r"the loss of step [123] is not finite"):
        run(config)
    lines = read_metrics(Path(config.out) / "metrics.jsonl")
    saved = latest_checkpoint(Path(config.out))
    assert (load_checkpoint(saved)[0].cursor.step if saved else 0) == len(lines)
    assert saved is None or all(tensor.isfinite().all() for tensor in load_checkpoint(saved)[1].values())
    assert not (Path(config.out) / "model").exists()


def test_images_train_beside_videos(tmp_path):
    inputs = write_inputs(tmp_path, num_videos=6, num_images=6)
    for stage in (1, 2):
        out = run(small_config(inputs, tmp_path / f"out-{stage}", stage=stage, steps=3, save_every=3))
        assert (out / "model" / "config.json").is_file()


def test_the_average_baseline_has_only_adapters_to_train(inputs, tmp_path):
    config = small_config(inputs, tmp_path / "avg", stage=2, linvt_kind="avg", steps=2)
    assert all("lora" in name for name in final_tensors(run(config)))
    with pytest.raises(ValueError, match="no trainable parameter"):
        run(replace(config, stage=1, contrastive_weight=0.0, out=str(tmp_path / "nothing")))


def test_gradient_checkpointing_changes_nothing(stage_2, tmp_path):
    config, _ = stage_2
    config = replace(config, out=str(tmp_path / "out"), eval_annotations=(), lora_dropout=0.0)
    plain = run(config)
    checkpointed = run(replace(config, gradient_checkpointing=True, out=str(tmp_path / "checkpointed")))
    for name, tensor in final_tensors(plain).items():
        torch.testing.assert_close(final_tensors(checkpointed)[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("zero_stage", "precision"), [(1, "fp32"), (2, "bf16"), (3, "bf16")])
def test_other_engines_train_the_same_model(zero_stage, precision, stage_2, tmp_path):
    config, whole = stage_2
    config = replace(config, zero_stage=zero_stage, precision=precision, steps=2, out=str(tmp_path / "out"))
    out = run(config)
    (first, *_), (reference, *_) = reproducible_lines(out), reproducible_lines(whole)
    assert first["loss"] == pytest.approx(reference["loss"], rel=1e-5 if precision == "fp32" else 3e-2)
    saved, weights = load_file(out / "model" / "linvt.safetensors"), final_tensors(out)
    for name, tensor in saved.items():
        assert torch.equal(tensor, weights[f"weights.video_tokenizer.{name}"].to(tensor.dtype))


def test_flags_that_contradict_the_model_to_start_from_are_refused(stage_1, inputs, tmp_path):
    config = small_config(
        inputs, tmp_path / "out", stage=2, init_from=str(stage_1[1] / "model"), linvt_num_queries=(8, 2)
    )
    with pytest.raises(ValueError, match=r"--linvt-num-queries \(8, 2\) differs from the \(4, 2\) of --init-from"):
        run(config)


def test_a_cache_of_another_backbone_is_refused(inputs, tmp_path):
    other = save_tiny_llava(tmp_path / "wide", hidden_size=96)
    with pytest.raises(ValueError, match=r"holds tokens of C = 64, --backbone .* has C = 96"):
        run(small_config(inputs, tmp_path / "out", backbone=str(other)))


def _model_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "linvt.safetensors") | load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def tuned(inputs, tmp_path_factory) -> Path:
    """A model that can only get worse at a high learning rate."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    return run(small_config(inputs, out, stage=2, steps=16, learning_rate=0.3, warmup_steps=0)) / "model"


def test_the_best_model_by_validation_is_kept_beside_the_last(tuned, inputs, tmp_path):
    config = small_config(
        inputs,
        tmp_path / "out",
        stage=2,
        init_from=str(tuned),
        eval_annotations=(inputs.annotations,),
        eval_every=1,
        eval_visits=6,
        eval_answers=0,
        learning_rate=1.0,
        clip_grad_norm=0.0,
        steps=12,
        save_every=3,
        warmup_steps=12,
    )
    out = run(config)
    values = {line["step"]: line["eval_loss"] for line in read_metrics(out / "metrics.jsonl") if "eval_loss" in line}
    best = min(values, key=values.__getitem__)
    assert 1 < best < 12
    assert [path.name for path in out.glob("best-*")] == [f"best-{best:08d}"]
    assert (out / "best").resolve().name == f"best-{best:08d}"
    saved = load_checkpoint(latest_checkpoint(out))[0].best
    assert saved is not None
    assert (saved.step, saved.value) == (best, values[best])
    # It is what training was at that step; and killed in the next one and gone on with, it is the same.
    resumed = replace(config, out=str(tmp_path / "resumed"), save_every=1)
    run(resumed, lost_at=best + 1)
    then = final_tensors(tmp_path / "resumed")
    run(resumed)
    assert (tmp_path / "resumed" / "best").resolve().name == f"best-{best:08d}"
    for name, tensor in load_file(out / "best" / "linvt.safetensors").items():
        assert torch.equal(then[f"weights.video_tokenizer.{name}"], tensor)
    for file in ("linvt.safetensors", "adapter/adapter_model.safetensors"):
        assert (out / "best" / file).read_bytes() == (tmp_path / "resumed" / "best" / file).read_bytes()
    assert (out / "model" / "linvt.safetensors").read_bytes() != (out / "best" / "linvt.safetensors").read_bytes()
    assert VideoLLM.from_pretrained(out / "best", parts=("llm",)).video_tokenizer.config.num_queries == (4, 2)


@pytest.mark.parametrize(("zero_stage", "precision"), [(0, "fp32"), (1, "bf16")])
def test_averaged_weights_are_validated_saved_and_resumed(zero_stage, precision, stage_1, inputs, tmp_path):
    config = small_config(
        inputs,
        tmp_path / "out",
        stage=2,
        init_from=str(stage_1[1] / "model"),
        eval_annotations=(inputs.annotations,),
        eval_every=3,
        eval_visits=6,
        eval_answers=0,
        ema_decay=0.7,
        zero_stage=zero_stage,
        precision=precision,
    )
    out = run(config)
    tensors = final_tensors(out)
    assert (latest_checkpoint(out) / "average.safetensors").is_file()
    for name, tensor in load_file(out / "model" / "linvt.safetensors").items():
        assert torch.equal(tensors[f"average.video_tokenizer.{name}"].to(tensor.dtype), tensor)
    averages = {
        name.removeprefix("average."): tensor for name, tensor in tensors.items() if name.startswith("average.")
    }
    assert all(not torch.equal(tensors[f"weights.{name}"], tensor) for name, tensor in averages.items())

    # The weights that train are the same without it; what is validated is not.
    without = run(replace(config, out=str(tmp_path / "without"), ema_decay=0.0))
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in final_tensors(without).items())
    averaged, last = (
        [line["eval_loss"] for line in read_metrics(one / "metrics.jsonl") if "eval_loss" in line]
        for one in (out, without)
    )
    assert len(averaged) == len(last) == 2
    assert all(a != b for a, b in zip(averaged, last))

    resumed = replace(config, out=str(tmp_path / "resumed"))
    run(resumed, lost_at=5)
    again = final_tensors(run(resumed))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    assert reproducible_lines(tmp_path / "resumed") == reproducible_lines(out)
    for file in ("linvt.safetensors", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "resumed" / "model" / file).read_bytes() == (out / "model" / file).read_bytes()


def test_asked_to_stop_it_leaves_a_checkpoint_of_this_step_and_goes_on_from_there(stage_2, tmp_path):
    config, whole = stage_2
    config = replace(config, out=str(tmp_path / "out"), save_every=100)
    out = Path(config.out)
    out.mkdir()

    class Cluster(PlainContext):
        """Sends SIGTERM when step 3 is reported."""

        def report(self, metrics):
            if metrics["step"] == 3 and not self.stop.received:
                os.kill(os.getpid(), signal.SIGTERM)

    with plain_context(out) as context:
        fields = ("rank", "world_size", "local_rank", "device", "run_dir", "stop")
        assert train(config, Cluster(**{name: getattr(context, name) for name in fields})) is False
    # Noticed when the next step adds up what the workers have to say.
    assert load_checkpoint(latest_checkpoint(out))[0].cursor.step == 4
    assert not (out / "model").exists()
    assert run(config) == out
    assert all(torch.equal(tensor, final_tensors(out)[name]) for name, tensor in final_tensors(whole).items())
    assert reproducible_lines(out) == reproducible_lines(whole)


def test_a_run_that_diverges_is_stopped(tuned, inputs, tmp_path):
    config = small_config(
        inputs,
        tmp_path / "out",
        stage=2,
        init_from=str(tuned),
        learning_rate=10.0,
        clip_grad_norm=0.0,
        steps=30,
        warmup_steps=30,
        divergence_steps=2,
    )
    with pytest.raises(TrainingFailed, match=r"the loss runs away: its mean over the last 2 steps is [\d.]+ at step"):
        run(config)
    losses = [line["loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]
    means = [(a + b) / 2 for a, b in pairwise(losses)]
    assert means[-1] > max(2 * min(means), min(means) + 1)
    assert not (tmp_path / "out" / "model").exists()
    # What the guards remember is in the checkpoint.
    state, _ = load_checkpoint(latest_checkpoint(tmp_path / "out"))
    assert list(state.guards.recent_losses) == losses[state.cursor.step - 2 : state.cursor.step]
