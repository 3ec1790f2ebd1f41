"""What a training run is: model, data order, batches, optimizer, checkpoints, workers."""

from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from infra.config import StrictModel
from infra.errors import BadInputError
from infra.tracking import TrackingConfig
from training.architecture import GenerationConfig, architecture
from training.conditioning_config import ConditioningConfig
from training.distillation_config import DistillationConfig
from training.freezing import Part
from training.model.hyperclip import HyperClipConfig
from training.model.registry import MODELS
from training.preprocess import PreprocessConfig

Share = float


class AugmentConfig(StrictModel):
    """How a training picture is varied."""

    min_scale: float = Field(default=0.6, gt=0, le=1)
    """Smallest share of the picture's area that a random crop keeps."""
    colour_jitter: float = Field(default=0.3, ge=0, le=1)
    """Largest relative change of brightness and of each channel."""
    grayscale_share: float = Field(default=0.0, ge=0, le=1)
    """Share of pictures that lose their colour, half of them with strong contrast besides, as line drawings and prints have it.
    A model that is to read styles which its training lacks must not lean on colour."""
    random_background: bool = True
    """Lay transparency over a random colour, or the model keys on white."""


class OptimizerConfig(StrictModel):
    """AdamW with warm-up and cosine; norms, biases and scalars are not decayed."""

    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 0.2
    betas: tuple[float, float] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    warmup_steps: NonNegativeInt = 500
    max_grad_norm: PositiveFloat = 1.0
    hypernetwork_lr_scale: PositiveFloat = 1.0
    """What multiplies the learning rate of the hypernetwork's last layer, which starts at zero."""


class CheckpointConfig(StrictModel):
    every_steps: PositiveInt = 1000
    keep: PositiveInt = 2
    """How many of the newest checkpoints stay."""


class EvaluationScheduleConfig(StrictModel):
    """Zero-shot accuracy of checkpoints while training goes on, measured by a process of its own at low priority."""

    every_steps: NonNegativeInt = 0
    """A multiple of checkpoint.every_steps; 0: never.  One that is due while another runs is left out."""
    num_ways: PositiveInt = 10
    """Names in a task."""
    num_tasks: PositiveInt = 20


class WorkersConfig(StrictModel):
    """Processes that train together."""

    num_workers: PositiveInt = 1
    """World size; must divide contrastive_batch_size."""
    min_workers: PositiveInt = 1
    """Where the cluster has no room for num_workers, the next smaller divisor of the batch that fits, down to this one.  Fewer
    workers hold more samples each: leave them the memory for it."""
    wait_for_workers_s: PositiveFloat = 300.0
    """How long each attempt waits for room for num_workers (an autoscaler may bring it) before it makes do with fewer."""
    use_gpu: bool = False
    cpus_per_worker: PositiveInt = 1
    threads: PositiveInt = 1
    """Compute threads of each worker."""
    max_failures: NonNegativeInt = 2
    """How often, in all, a run under Ray starts again from the newest checkpoint after a lost worker or node.  What would
    repeat itself (damaged data, a loss that is not finite) ends it at once."""

    @model_validator(mode="after")
    def _fewest_at_most_wanted(self) -> "WorkersConfig":
        if self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than num_workers={self.num_workers}")
        return self


class TrainConfig(StrictModel):
    """One training run."""

    model: str
    """A name of the registry, e.g. hyperclip_quickstart or its twin siglip_quickstart."""
    generation: GenerationConfig = GenerationConfig()
    """What that model generates, where it is to be something else."""
    init_from: str | None = None
    """A bundle whose weights training starts from, typically the twin's: a folder or an address.  What only the hypernetwork
    needs and the bundle lacks starts as ever."""
    freeze: tuple[Part, ...] = ()
    """Parts that stand still until `freeze_steps`; with image_trunk its running statistics too.  norm: the base scale and bias
    of the norms alone, so that what is generated carries all of them, as the paper's absolute values do."""
    freeze_steps: NonNegativeInt = 0
    """Steps of the first stage; num_steps: to the end."""
    unfrozen_lr_scale: PositiveFloat = 0.1
    """What multiplies every learning rate after the first stage; where nothing is frozen it has no meaning."""
    delta_share: float = Field(default=1.0, gt=0, le=1)
    """Share of every generated delta that the finished model keeps.  Between the neutral parameters and those that fit the
    training pictures best lie some that do better on pictures of another kind (Wortsman et al., 2022, arXiv 2109.01903): 0.5
    did on artists never seen.  Checkpoints keep all."""
    num_steps: PositiveInt
    """Optimizer steps."""
    contrastive_batch_size: PositiveInt
    """Samples of one contrastive batch, all ranks together: loss, conditioning and batch statistics see exactly these."""
    accumulation_steps: PositiveInt = 1
    """Contrastive batches averaged into one optimizer step."""
    seed: NonNegativeInt = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes under autocast; parameters, norms and moments stay fp32."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: what the workers share out between them: 1 the moments, 2 gradients too, 3 parameters too.  The
    numbers are the same.  On one worker there is nothing to share and 0 is fastest."""
    compile_blocks: bool = False
    """torch.compile the blocks of the text encoder and the hypernetwork: a minute at the start, then faster steps that
    round differently.  Not with ZeRO stage 3, which gathers parameters inside the blocks."""
    recompute_activations: bool = False
    """Activation checkpointing: keep only what goes between the stages of the image trunk and the blocks of the transformers,
    and compute the rest again in backward: the same numbers, less memory, more time."""
    templates: tuple[str, ...] = ("{}",)
    """Texts a caption is put into, one drawn per sample; a label's feature at test time is the mean over all."""
    source_weights: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Share of each source in the stream of samples (only ratios matter); sources left out are not used.  Empty: every epoch
    holds every sample exactly once."""
    loader_workers: NonNegativeInt = 1
    """Processes that read and decode, per rank; 0 decodes in the training process."""
    loader_cache_gb: PositiveFloat = 16
    """Disk of each machine, under TMPDIR, for blocks of remote shards; local shards need none."""
    max_replaced_share: float = Field(default=0.001, ge=0, le=1)
    """Share of samples that may fail to decode, and be replaced by others, before the run fails."""
    log_every_steps: PositiveInt = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    distillation: DistillationConfig | None = None
    """Learn from a larger model besides; absent: from the pictures and captions alone."""
    augment: AugmentConfig = AugmentConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationScheduleConfig = EvaluationScheduleConfig()
    workers: WorkersConfig = WorkersConfig()

    @field_validator("model")
    @classmethod
    def _known_model(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; available: {', '.join(sorted(MODELS))}")
        return name

    @field_validator("templates")
    @classmethod
    def _one_place_each(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise ValueError("each template must hold {} exactly once, and there must be one")
        return templates

    @model_validator(mode="after")
    def _blocks_are_whole_when_compiled(self) -> "TrainConfig":
        if self.compile_blocks and self.zero_stage == 3:
            raise ValueError("compile_blocks does not go with zero_stage=3, which gathers parameters inside the blocks")
        return self

    @model_validator(mode="after")
    def _stages_fit_the_model(self) -> "TrainConfig":
        model = self.architecture()  # raises where generation does not fit it
        if bool(self.freeze) != bool(self.freeze_steps):
            raise ValueError(f"freeze={self.freeze} and freeze_steps={self.freeze_steps}: give both, or neither")
        if model.hypernetwork is not None and self.num_steps <= self.conditioning.start_step:
            raise ValueError(
                f"num_steps={self.num_steps} ends before conditioning.start_step={self.conditioning.start_step}, so the "
                f"hypernetwork of {self.model} would learn nothing: raise the one or lower the other"
            )
        all_frozen = {"image_trunk", "projection", "text_encoder", "logit"} <= set(self.freeze)
        if model.hypernetwork is None and all_frozen:
            raise ValueError(f"with freeze={self.freeze} nothing of {self.model} is left to train")
        if self.conditioning.neutral_weight and all_frozen and self.freeze_steps >= self.num_steps:
            raise ValueError(
                f"conditioning.neutral_weight={self.conditioning.neutral_weight} has nothing to train: freeze={self.freeze} "
                "holds to the end. Set it to 0, or freeze_steps below num_steps"
            )
        return self

    @model_validator(mode="after")
    def _every_topic_has_a_delta(self) -> "TrainConfig":
        if self.conditioning.topics and self.conditioning.coherence == "neighbours":
            raise ValueError("conditioning.topics says which topics make groups, coherence=neighbours that none do: choose one")
        topics, hypernetwork = self.conditioning.topics, self.architecture().hypernetwork
        if not self.conditioning.routing_weight or hypernetwork is None:
            return self
        if not topics or hypernetwork.basis != len(topics) + 1:
            raise ValueError(
                f"conditioning.routing_weight={self.conditioning.routing_weight} needs one learned delta for each of the "
                f"{len(topics)} conditioning.topics and one for other sets: set generation.basis, now {hypernetwork.basis}, to "
                f"{len(topics) + 1}, and name at least one topic"
            )
        return self

    @model_validator(mode="after")
    def _batch_divides(self) -> "TrainConfig":
        local_batch_size(self.contrastive_batch_size, self.workers.num_workers)
        if max(self.conditioning.groups) > self.contrastive_batch_size // 2:
            raise ValueError(
                f"conditioning.groups={self.conditioning.groups}: a group needs at least two of the "
                f"{self.contrastive_batch_size} samples of a batch to have a negative"
            )
        return self

    @model_validator(mode="after")
    def _evaluations_have_checkpoints(self) -> "TrainConfig":
        if self.evaluation.every_steps % self.checkpoint.every_steps:
            raise ValueError(
                f"evaluation.every_steps={self.evaluation.every_steps} is not a multiple of "
                f"checkpoint.every_steps={self.checkpoint.every_steps}: it is checkpoints that are evaluated"
            )
        return self

    def identity(self, *, init_from: str | None = None, teacher: str | None = None) -> dict[str, Any]:
        """Everything that decides the numbers; workers, ZeRO stage, and how a run is watched may change on resume.

        Args:
            init_from: what the bundle of that setting is known by, wherever it lies; its address when absent.
            teacher: likewise of distillation.teacher.
        """
        found = self.model_dump(
            mode="json",
            exclude={
                "workers",
                "zero_stage",
                "checkpoint",
                "evaluation",
                "log_every_steps",
                "loader_workers",
                "loader_cache_gb",
                "max_replaced_share",
                "recompute_activations",
                "compile_blocks",
            },
        )
        found["init_from"] = init_from or self.init_from
        if self.distillation is None:
            del found["distillation"]  # so a run without keeps the address that it had before there was any
        else:
            found["distillation"]["teacher"] = teacher or self.distillation.teacher
        return found

    @property
    def bundle_uris(self) -> tuple[str, ...]:
        """The models that training reads."""
        return tuple(uri for uri in (self.init_from, self.distillation and self.distillation.teacher) if uri)

    def architecture(self) -> HyperClipConfig:
        """The model that is trained."""
        return architecture(self.model, self.generation)

    @property
    def preprocess(self) -> PreprocessConfig:
        return PreprocessConfig(image_size=self.architecture().image.image_size)


class TrainRequest(StrictModel):
    """What a training worker is given: plain values, so that Ray Train and torchrun pass the same thing."""

    config: TrainConfig
    shards_uri: str
    """Folder with the manifest of the training shards."""
    output_uri: str
    """Folder for checkpoints, metrics and the bundle."""
    tracking: TrackingConfig | None = None
    run_id: str | None = None
    """MLflow run that gets the metrics."""
    evaluation_shards_uri: str | None = None
    """Pictures for the evaluations of `config.evaluation`."""


def local_batch_size(contrastive_batch_size: int, world_size: int) -> int:
    """Samples of each rank.

    Raises:
        BadInputError: the world size does not divide the batch; the message names sizes that do.
    """
    if contrastive_batch_size % world_size:
        fitting = [n for n in range(1, contrastive_batch_size + 1) if contrastive_batch_size % n == 0]
        nearest = sorted(fitting, key=lambda n: abs(n - world_size))[:3]
        raise BadInputError(
            f"contrastive_batch_size={contrastive_batch_size} is not a multiple of the {world_size} workers; "
            f"worker counts that fit: {', '.join(map(str, sorted(nearest)))}"
        )
    return contrastive_batch_size // world_size


def world_sizes(contrastive_batch_size: int, *, most: int, least: int) -> list[int]:
    """World sizes that divide the batch, largest first."""
    return [size for size in range(most, least - 1, -1) if contrastive_batch_size % size == 0]
