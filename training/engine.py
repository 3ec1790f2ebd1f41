"""DeepSpeed, behind the four things training needs of it: a step, and the full state out, in, and by parameter name.

The only file that imports DeepSpeed, and only inside the worker.  Its configuration is built here, from ours.  Its own
checkpoints are never used: loading them unpickles.

bf16 is autocast over fp32 parameters rather than DeepSpeed's own bf16: masters, moments, norms, logit scale and running
statistics are then fp32 in every stage without a list of exceptions, and a checkpoint means the same in both precisions.
The price is a gradient exchange in fp32 and a cast of the weights a step, small beside the activations of these models.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from infra.errors import BadInputError
from training.config import OptimizerConfig, TrainConfig, local_batch_size
from training.freezing import Freezer
from training.model.hyperclip import HyperClip
from training.objective import ContrastiveObjective, LocalBatch, ObjectiveOutput
from training.schedule import rate_of_step

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
        self._stage = config.zero_stage
        self._objective = objective.to(device)
        if config.recompute_activations:
            _recompute_activations(objective.model)
        if config.compile_blocks:
            objective.model.compile_blocks()
        self.device = device
        self._freezer = Freezer(objective.model, config.freeze)
        optimizer = torch.optim.AdamW(
            parameter_groups(objective, config.optimizer, frozen=self._freezer.parameters),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            fused=True,  # one pass over the memory and no temporary tensors, on CPUs too
        )
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=objective, optimizer=optimizer, config=deepspeed_config(config, dist.get_world_size())
        )
        self._parameters = list(objective.parameters())
        self._grad_norm: float | Tensor = 0.0
        self._create_moments(optimizer_step=0)

    def train_batch(self, batch: LocalBatch, *, step: int, batch_number: int) -> ObjectiveOutput:
        """Forward and backward of one contrastive batch; the parameters move with the last one of an accumulation."""
        self._freezer.set(frozen=step < self._config.freeze_steps)
        rate = rate_of_step(step, self._config)
        for group in self._optimizer.param_groups:
            group["lr"] = 0.0 if group["freezes"] and self._freezer.frozen else rate * group["lr_scale"]
        output: ObjectiveOutput = self._engine(batch.to(self.device), step=step, batch_number=batch_number)
        self._engine.backward(output.loss)
        if self._stage == 0 and self._engine.is_gradient_accumulation_boundary():
            self._grad_norm = nn.utils.clip_grad_norm_(self._parameters, self._config.optimizer.max_grad_norm)
            self._count_step_of_frozen()
        self._engine.step()
        return output

    def _count_step_of_frozen(self) -> None:
        """AdamW passes over what has no gradient, but with ZeRO and after resuming every parameter has seen every step."""
        if self._freezer.frozen:
            for parameter in self._freezer.parameters:
                self._optimizer.state[parameter]["step"] += 1

    @property
    def grad_norm(self) -> Tensor:
        """() of the last step, before clipping; left on the device, so that having it costs no wait."""
        norm = self._grad_norm if self._stage == 0 else self._engine.get_global_grad_norm()
        return torch.as_tensor(norm, dtype=torch.float32, device=self.device).detach()

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
        self._freezer.set(frozen=False)  # at stage 3 what needs no gradient has no state; the next step freezes again
        for name, parameter in self._objective.model.named_parameters():
            yield "parameters", name, self._get(parameter)
            for key in MOMENTS:
                yield "moments", f"{key}.{name}", self._get(parameter, key)
        for name, buffer in self._objective.model.named_buffers():
            yield "buffers", name, buffer

    def load_full_state(self, state: FullState, *, optimizer_step: int) -> None:
        """Put a full state in place, whatever world size and ZeRO stage wrote it; every rank must call it."""
        self._freezer.set(frozen=False)  # as in `_gathered`
        self._create_moments(optimizer_step)
        with torch.no_grad():
            for name, parameter in self._objective.model.named_parameters():
                self._set(parameter, state.parameters[name])
                self._set_forward_copy(parameter, state.parameters[name])
                for key in MOMENTS:
                    self._set(parameter, state.moments[f"{key}.{name}"], key)
            for name, buffer in self._objective.model.named_buffers():
                buffer.copy_(state.buffers[name])

    def _get(self, parameter: nn.Parameter, key: str | None = None) -> Tensor:
        """The whole fp32 master of a parameter, or the moment `key` of it."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._stage == 0:
            return parameter if key is None else self._optimizer.state[parameter][key]
        if self._stage < 3 and dist.get_world_size() == 1:  # this rank's part is the whole, to be had without a copy
            own: Tensor = parameter._hp_mapping.get_hp_fragment(key)  # type: ignore[attr-defined]
            return own.view(parameter.shape)
        return safe_get_full_fp32_param(parameter) if key is None else safe_get_full_optimizer_state(parameter, key)

    def _set(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Inverse of `_get`."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state
        from deepspeed.utils.tensor_fragment import safe_set_local_fp32_param, safe_set_local_optimizer_state

        value = value.to(self.device)
        if self._stage == 0:
            self._get(parameter, key).copy_(value)
        elif self._stage < 3:
            if key is None:
                safe_set_full_fp32_param(parameter, value)
            else:
                safe_set_full_optimizer_state(parameter, value, key)
        else:  # DeepSpeed's setter of whole tensors fails where the ranks do not divide a tensor, so each sets its own part
            own = _partition(value, size=parameter.ds_tensor.numel())  # type: ignore[attr-defined]
            if key is None:
                safe_set_local_fp32_param(parameter, own)
            else:
                safe_set_local_optimizer_state(parameter, own, key)

    def _set_forward_copy(self, parameter: nn.Parameter, value: Tensor) -> None:
        """What the forward pass reads; at stage 0 it is the master itself."""
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._stage == 3)
        with gathered:
            parameter.copy_(value)

    def _create_moments(self, optimizer_step: int) -> None:
        """Give the optimizer the empty state that its first step would make, so that there is something to read and to set.

        DeepSpeed links parameters to their moments after the first parameter group's first step, when those of the other
        groups do not exist yet; here all exist before it links.
        """
        inner: torch.optim.Optimizer = self._optimizer if self._stage == 0 else self._optimizer.optimizer
        if self._stage == 3:
            flats = self._optimizer.fp32_partitioned_groups_flat  # the groups are empty but for the moment of a step
        else:
            flats = [flat for group in inner.param_groups for flat in group["params"]]
        for flat in flats:
            inner.state[flat] = {"step": torch.tensor(float(optimizer_step), device=flat.device)} | {
                key: torch.zeros_like(flat) for key in MOMENTS
            }
        if self._stage in (1, 2):
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()  # there is no public call for it


def deepspeed_config(config: TrainConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run of ours."""
    return {
        "train_micro_batch_size_per_gpu": local_batch_size(config.contrastive_batch_size, world_size),
        "gradient_accumulation_steps": config.accumulation_steps,
        # without ZeRO it clips as well, but does not say what the norm was
        "gradient_clipping": config.optimizer.max_grad_norm if config.zero_stage else 0.0,
        "zero_optimization": {"stage": config.zero_stage},
        "zero_allow_untested_optimizer": True,  # torch's AdamW, the same with and without ZeRO
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,  # progress is ours to tell
    }


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, *, frozen: Sequence[nn.Parameter] = ()
) -> list[dict[str, Any]]:
    """Decay matrices and kernels; not norms, biases, scalars and positions.

    Args:
        frozen: what stands still in a first stage; it gets groups of its own, marked `freezes`.

    Returns:
        Groups for torch's optimizers; `lr_scale` of each multiplies the learning rate.
    """
    freezes = {id(parameter) for parameter in frozen}
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        plain = parameter.ndim < 2 or name.endswith("positional_embedding")
        lr_scale = config.hypernetwork_lr_scale if "hypernetwork.output." in name else 1.0
        groups.setdefault((id(parameter) in freezes, lr_scale, plain), []).append(parameter)
    return [
        {"params": groups[key], "weight_decay": 0.0 if plain else config.weight_decay, "freezes": freeze, "lr_scale": lr_scale}
        for key in sorted(groups)
        for freeze, lr_scale, plain in [key]
    ]


def _recompute_activations(model: HyperClip) -> None:
    try:
        model.recompute_activations()
    except ValueError as error:
        raise BadInputError(f"{error}; set recompute_activations to false") from error


def _import_deepspeed(device: torch.device) -> Any:
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # before anything asks for the accelerator
    import deepspeed

    if device.type == "cpu":
        # a compiled shared-memory exchange for CPU tensors: it needs a compiler, a minute at first use, and gloo does the same
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    # ZeRO-3 says so of every dataclass; those of the objective hold no parameter that it would have to gather again
    deepspeed.utils.logger.addFilter(lambda record: "unknown inputs or outputs type" not in record.getMessage())
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*is deprecated", category=FutureWarning)
    return deepspeed


def _partition(value: Tensor, *, size: int) -> Tensor:
    """This rank's part of a whole tensor, padded with zeros as DeepSpeed pads it."""
    padded = torch.zeros(size * dist.get_world_size(), dtype=value.dtype, device=value.device)
    padded[: value.numel()] = value.flatten()
    return padded[dist.get_rank() * size :][:size]


def _to_cpu(tensor: Tensor, into: Tensor | None) -> Tensor:
    if into is None:
        into = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return into.copy_(tensor.detach())
