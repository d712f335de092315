"""DeepSpeed around a model of which only some parameters train: one step, and its whole state as plain tensors.

Checkpoints are not DeepSpeed's. Those are pickles, one for each rank, and a resume on another number of workers has to
convert them. Here every trainable parameter's fp32 value and its two Adam moments are gathered whole, whatever the
ZeRO stage, so a checkpoint is a dict of named tensors and means the same on any number of workers.
"""

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from linvt.training.config import TrainConfig

_MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """A DeepSpeed engine and its AdamW. Collective: all ranks call each method together and in the same order.

    The process group must exist already. The learning rate comes from outside, step by step.
    """

    def __init__(self, model: nn.Module, config: TrainConfig):
        deepspeed = import_deepspeed()
        self.zero_stage = config.zero_stage
        self.clip_grad_norm = config.clip_grad_norm
        self.trainable: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self.trainable:
            raise ValueError("the model has no trainable parameter")
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.trainable.items()}
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.trainable.values() if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in self.trainable.values() if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
        )
        self.engine: Any = deepspeed.initialize(
            model=model, optimizer=optimizer, config=_deepspeed_config(config), dist_init_required=False
        )[0]
        self._start_moments(step=0)
        self.ema_decay = config.ema_decay
        self._averages = [master.detach().clone() for master in self._masters()] if config.ema_decay else []

    @property
    def model(self) -> Any:
        return self.engine.module

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.engine(*inputs, **options)

    def step(self, loss: Tensor, learning_rate: float, *, uses_all: bool = True) -> float:
        """`backward` and `update` of a step of one part."""
        self.backward(loss, uses_all=uses_all)
        return self.update(learning_rate)

    def backward(self, loss: Tensor, *, is_last: bool = True, uses_all: bool = True) -> None:
        """Add the gradient of `loss` to the step's; the last part's call averages it over the ranks.

        Say `uses_all=False` where the loss of some rank may not depend on every trainable parameter.
        """
        if not uses_all and self.zero_stage in (1, 2):
            # These reduce the gradients that exist, and ranks that disagree about which do would wait for each other.
            loss = loss + 0.0 * torch.stack([parameter.sum() for parameter in self.trainable.values()]).sum()
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss)
        if is_last:
            return
        self.engine.step()  # Takes note of the part, no more.
        if hasattr(self.engine.optimizer, "clear_lp_grads"):
            # ZeRO 1 in bf16 has added them to fp32 ones. It would clear them by a hook on the model's output, if that
            # were a tensor; left there, they would be added again with the next part's.
            self.engine.optimizer.clear_lp_grads()

    def update(self, learning_rate: float) -> float:
        """Clip the gradient of the parts since the last update, and take the step. Returns its norm before clipping.

        Raises FloatingPointError for a gradient that is not finite: before the update without ZeRO, after it with ZeRO,
        which measures the norm inside its update.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.zero_stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self.trainable.values(), self.clip_grad_norm or math.inf))
            _check_finite(norm)
            self.engine.step()
        else:
            self.engine.step()
            norm = float(self.engine.get_global_grad_norm())
            _check_finite(norm)
        return norm

    @torch.no_grad()
    def average(self, step: int) -> None:
        """Take the weights after `step` steps into their average, where there is one.

        The decay grows to `ema_decay` as (1 + step) / (10 + step), so that the first weights are soon forgotten.
        """
        decay = min(self.ema_decay, (1 + step) / (10 + step))
        for average, master in zip(self._averages, self._masters() if self._averages else (), strict=True):
            average.lerp_(master.detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """A context in which the model has its averaged weights, where it has any."""
        if not self._averages:
            yield
            return
        self._swap_averages()
        self._masters_to_model()
        try:
            yield
        finally:
            self._swap_averages()
            self._masters_to_model()

    @torch.no_grad()
    def _swap_averages(self) -> None:
        for average, master in zip(self._averages, self._masters(), strict=True):
            before = master.detach().clone()
            master.copy_(average)
            average.copy_(before)

    def gather_state(self) -> dict[str, Tensor]:
        """fp32 tensors on the CPU, whole and equal on every rank: `weights.NAME`, `exp_avg.NAME`, `exp_avg_sq.NAME`
        and, with `ema_decay`, `average.NAME`."""
        state = {
            f"{kind}.{name}": self._get(parameter, kind)
            for name, parameter in self.trainable.items()
            for kind in ("weights", *_MOMENTS)
        }
        if self._averages:
            self._swap_averages()
            state |= {f"average.{name}": self._get(p, "weights") for name, p in self.trainable.items()}
            self._swap_averages()
        return state

    def load_state(self, state: dict[str, Tensor], *, step: int) -> None:
        """Put back what `gather_state` gave after `step` steps, on any number of ranks and under any ZeRO stage.

        Raises ValueError where the tensors are not those of this model.
        """
        kinds = ("weights", *_MOMENTS, *(["average"] if self._averages else []))
        expected = {f"{kind}.{name}": shape for kind in kinds for name, shape in self.shapes.items()}
        found = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            shown = [f"{name} is {found.get(name)} there and {expected.get(name)} here" for name in wrong[:5]]
            raise ValueError(f"the checkpoint is of another model, {len(wrong)} tensors differ: {'; '.join(shown)}")
        self._start_moments(step)
        if self._averages:
            for name, parameter in self.trainable.items():
                self._put(parameter, "weights", state[f"average.{name}"])
            self._averages = [master.detach().clone() for master in self._masters()]
        for name, parameter in self.trainable.items():
            for kind in ("weights", *_MOMENTS):
                self._put(parameter, kind, state[f"{kind}.{name}"])
        self._masters_to_model()

    def gathered_weights(self) -> AbstractContextManager[None]:
        """A context in which every rank sees its model's parameters whole (ZeRO 3 splits them)."""
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.model.parameters()), enabled=self.zero_stage == 3)

    # ZeRO 1–3 keep fp32 masters of a rank's share in flat tensors, and AdamW's states are those tensors' states.

    @property
    def _torch_optimizer(self) -> torch.optim.Optimizer:
        return self.engine.optimizer if self.zero_stage == 0 else self.engine.optimizer.optimizer

    def _masters(self) -> list[Tensor]:
        if self.zero_stage == 3:
            return self.engine.optimizer.fp32_partitioned_groups_flat
        return [parameter for group in self._torch_optimizer.param_groups for parameter in group["params"]]

    def _start_moments(self, step: int) -> None:
        """Make AdamW's state before its first step, which would otherwise make it: zero moments, `step` steps done."""
        for master in self._masters():
            self._torch_optimizer.state[master] = {
                "step": torch.tensor(float(step)),
                **{moment: torch.zeros_like(master, requires_grad=False) for moment in _MOMENTS},
            }
        if self.zero_stage in (1, 2):
            # DeepSpeed links states to parameters after its first group's first step, when the other groups have none.
            self.engine.optimizer._hp_optimizer_states_linked = False
            self.engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _get(self, parameter: nn.Parameter, kind: str) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self.zero_stage == 0:
            whole = parameter.detach() if kind == "weights" else self._torch_optimizer.state[parameter][kind]
        elif kind == "weights":
            whole = safe_get_full_fp32_param(parameter)
        else:
            whole = safe_get_full_optimizer_state(parameter, kind)
        assert whole is not None
        # A copy, so that the next step cannot change what is being written.
        return whole.to("cpu", torch.float32, copy=True).contiguous()

    def _put(self, parameter: nn.Parameter, kind: str, value: Tensor) -> None:
        from deepspeed.utils import (
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        value = value.to(self.engine.device)
        if self.zero_stage == 0:
            with torch.no_grad():
                (parameter if kind == "weights" else self._torch_optimizer.state[parameter][kind]).copy_(value)
        elif self.zero_stage == 3:
            # DeepSpeed's own cut into ranks' shares fails where the last one needs padding.
            share = self._share_of(value, parameter)
            if kind == "weights":
                safe_set_local_fp32_param(parameter, share)
            else:
                safe_set_local_optimizer_state(parameter, share, kind)
        elif kind == "weights":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    @staticmethod
    def _share_of(value: Tensor, parameter: Any) -> Tensor:
        """This rank's share of a whole tensor under ZeRO 3, zeros beyond its end."""
        numel = parameter.ds_tensor.numel()
        padding = numel * dist.get_world_size() - value.numel()
        return nn.functional.pad(value.flatten(), (0, padding)).narrow(0, numel * dist.get_rank(), numel)

    def _masters_to_model(self) -> None:
        optimizer = self.engine.optimizer
        if self.zero_stage in (1, 2):
            optimizer.update_lp_params()
        elif self.zero_stage == 3:
            # What its step does after the update.
            for sub_group in range(len(optimizer.fp16_groups)):
                optimizer._reassign_or_swap_out_partitioned_parameters(sub_group)
            if optimizer.persistent_parameters:
                optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)


def import_deepspeed() -> Any:
    """DeepSpeed, set up so that it compiles nothing where there is no GPU (a minute on first use, and a build that is
    killed leaves a lock that hangs the next one)."""
    # Its caches and locks must not lie on a disk that nodes share.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(tempfile.gettempdir()) / f"torch_extensions_{os.getuid()}"))
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    if not torch.cuda.is_available():
        # Its shared-memory collectives are a C++ extension; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def end_process_group() -> None:
    """Destroy the process group, and what DeepSpeed remembers of it, which would fail the process's next run."""
    comm = import_deepspeed().comm
    if comm.is_initialized():
        comm.destroy_process_group()
    elif dist.is_initialized():
        dist.destroy_process_group()


def _deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    bf16 = config.precision == "bf16"
    return {
        # The loop makes its own batches and normalises its own loss: for DeepSpeed each step is one micro-batch of one.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # Without ZeRO the norm is wanted before the update, see Engine.step.
        "gradient_clipping": config.clip_grad_norm if config.zero_stage else 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "bf16": {"enabled": bf16},
        "data_types": {"grad_accum_dtype": "fp32"},
        "steps_per_print": None,
    }


def _check_finite(norm: float) -> None:
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"the gradient's norm is {norm}; lower --learning-rate or look at this step's samples. The latest "
            "checkpoint is from before this step"
        )
