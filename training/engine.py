"""DeepSpeed, behind the four things training needs of it: a step, and the full state out, in, and by parameter name.

The only file that imports DeepSpeed, and only inside the worker.  Its configuration is built here, from ours.  Its own
checkpoints are never used: loading them unpickles.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.config import OptimizerConfig, TrainConfig, local_batch_size
from training.objective import ContrastiveObjective, LocalBatch, ObjectiveOutput
from training.schedule import learning_rate_at

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class FullState:
    """Everything a resumed optimizer needs, whole tensors by parameter name, on the CPU."""

    parameters: dict[str, Tensor]
    """fp32 masters."""
    moments: dict[str, Tensor]
    """`exp_avg.NAME` and `exp_avg_sq.NAME`."""
    buffers: dict[str, Tensor]


class Engine:
    """A contrastive objective under DeepSpeed."""

    def __init__(self, objective: ContrastiveObjective, config: TrainConfig, *, device: torch.device) -> None:
        deepspeed = _import_deepspeed(device)
        self._config = config
        self._objective = objective.to(device)
        self.device = device
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, config.optimizer),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            foreach=True,
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(config, dist.get_world_size())
        )
        self._create_moments(optimizer_step=0)

    def train_batch(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        """Forward and backward of one contrastive batch; the parameters move with the last one of an accumulation."""
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self._config.optimizer, num_steps=self._config.num_steps)
        output: ObjectiveOutput = self._engine(batch.to(self.device), step=step, batch_number=batch_number)
        self._engine.backward(output.loss)
        self._engine.step()
        return output

    @property
    def grad_norm(self) -> Tensor:
        """() of the last step, before clipping; left on the device, so that asking does not wait for it."""
        norm = self._engine.get_global_grad_norm()
        return torch.as_tensor(0.0 if norm is None else norm, dtype=torch.float32).detach()

    def full_state(self, into: FullState | None = None) -> FullState:
        """Gather parameters and moments to the CPU, one tensor at a time.  Every other rank must call `join_full_state`.

        Args:
            into: an earlier state to write over: memory touched before is copied to far faster than new memory is.
        """
        full = FullState(parameters={}, moments={}, buffers={})
        for part, name, value in self._gathered():
            getattr(full, part)[name] = _to_cpu(value, getattr(into, part)[name] if into else None)
        return full

    def join_full_state(self) -> None:
        """This rank's part in another rank's `full_state`."""
        for _ in self._gathered():
            pass

    def _gathered(self) -> Iterator[tuple[str, str, Tensor]]:
        """(part, name, whole tensor) of everything in a `FullState`; all ranks step through it together."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self._objective.model.named_parameters():
            if self._config.zero_stage == 0:
                yield "parameters", name, parameter
                for key in MOMENTS:
                    yield "moments", f"{key}.{name}", self._optimizer.state[parameter][key]
            else:
                yield "parameters", name, safe_get_full_fp32_param(parameter)
                for key in MOMENTS:
                    yield "moments", f"{key}.{name}", safe_get_full_optimizer_state(parameter, key)
        for name, buffer in self._objective.model.named_buffers():
            yield "buffers", name, buffer

    def load_full_state(self, state: FullState, *, optimizer_step: int) -> None:
        """Put a full state in place, whatever world size and ZeRO stage wrote it."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self._create_moments(optimizer_step)
        with torch.no_grad():
            for name, parameter in self._objective.model.named_parameters():
                parameter.copy_(state.parameters[name])
                for key in MOMENTS:
                    value = state.moments[f"{key}.{name}"].to(self.device)
                    if self._config.zero_stage == 0:
                        self._optimizer.state[parameter][key].copy_(value)
                    else:
                        safe_set_full_optimizer_state(parameter, value, key)
                if self._config.zero_stage > 0:
                    safe_set_full_fp32_param(parameter, state.parameters[name].to(self.device))
            for name, buffer in self._objective.model.named_buffers():
                buffer.copy_(state.buffers[name])

    def _create_moments(self, optimizer_step: int) -> None:
        """Give the optimizer the empty state that its first step would make, so that there is something to read and to set.

        DeepSpeed links parameters to their moments after the first parameter group's first step, when those of the other
        groups do not exist yet; here all exist before it links.
        """
        inner: torch.optim.Optimizer = self._optimizer if self._config.zero_stage == 0 else self._optimizer.optimizer
        for group in inner.param_groups:
            for flat in group["params"]:
                inner.state[flat] = {"step": torch.tensor(float(optimizer_step))} | {
                    key: torch.zeros_like(flat) for key in MOMENTS
                }
        if self._config.zero_stage > 0:
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()  # there is no public call for it


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run of ours."""
    return {
        "train_micro_batch_size_per_gpu": local_batch_size(config.contrastive_batch_size, world_size),
        "gradient_accumulation_steps": config.accumulation_steps,
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, the same with and without ZeRO
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,  # progress is ours to tell
    }


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Decay matrices and kernels; not norms, biases, scalars and positions."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    plain = [parameter for name, parameter in named if parameter.ndim < 2 or name.endswith("positional_embedding")]
    chosen = {id(parameter) for parameter in plain}
    decayed = [parameter for _, parameter in named if id(parameter) not in chosen]
    return [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before anything asks for the accelerator
    import deepspeed

    if device.type == "cpu":
        # a compiled shared-memory exchange for CPU tensors: it needs a compiler, a minute at first use, and gloo does the same
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    return deepspeed


def _to_cpu(tensor: Tensor, into: Tensor | None) -> Tensor:
    if into is None:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach())
