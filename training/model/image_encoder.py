"""Small image encoder: a timm network and a linear projection, some of whose parameters are generated.

Shapes: B images, H W pixels, F trunk features, D embedding, G conditioning groups, P generated values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.generated_norm import GeneratedNorm, wrap_norms
from training.model.low_rank import GeneratedLinear, wrap_pointwise, wrap_spatial
from training.model.parameter_delta import GeneratedLayer, GroupDelta, parameter_layout, set_delta

Kind = Literal["norm", "convolution", "pointwise", "projection"]
"""What can be generated: scale and bias of the norms; low-rank deltas of the convolutions over more than one pixel and of those
over one; one of the projection."""

TRUNK_OPTIONS: dict[str, type] = {"channels": tuple, "layers": tuple, "stem_width": int}
"""What a configuration may pass on to timm: sizes, and nothing else.  Configurations come with bundles, and other options of
timm name weights and places to get them from."""


@dataclass(frozen=True)
class ImageEncoderConfig:
    trunk: str
    """Name of a timm network whose norms are BatchNorm2d or LayerNorm."""
    image_size: int
    """Side of the square input in pixels."""
    embed_dim: int
    """D."""
    generates: tuple[Kind, ...] = ("norm",)
    """What a delta holds."""
    convolution_rank: int = 4
    """Rank of the delta of each convolution over more than one pixel: so many values a task for each of its output channels."""
    pointwise_rank: int = 4
    """Rank of the delta of each 1x1 convolution: so many values a task for each of its output channels."""
    pointwise_stages: int | None = None
    """Only the 1x1 convolutions of the last so many stages (resolutions) of the trunk; None for all."""
    projection_rank: int = 16
    """Rank of the projection's delta: D times so many values a task."""
    trunk_options: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    """Sizes that make the trunk another than timm's, of those in `TRUNK_OPTIONS`: e.g. the `channels` of a ResNet's stages."""

    def __post_init__(self) -> None:
        """Raises ValueError when what is generated is nothing, unknown or named twice, or a rank or trunk option is no size."""
        object.__setattr__(self, "trunk_options", _checked_trunk_options(self.trunk_options))
        object.__setattr__(self, "generates", tuple(self.generates))  # JSON has lists
        unknown = [kind for kind in self.generates if kind not in get_args(Kind)]
        if unknown or not self.generates or len(set(self.generates)) != len(self.generates):
            raise ValueError(f"generates={self.generates}: name some of {', '.join(get_args(Kind))}, each once")
        ranks = {name: getattr(self, f"{name}_rank") for name in ("convolution", "pointwise", "projection")}
        if min(ranks.values()) < 1:
            raise ValueError(f"ranks must be positive: {', '.join(f'{name}_rank={rank}' for name, rank in ranks.items())}")


class ImageEncoder(nn.Module):
    """Images -> unit vectors, under the neutral parameters or under generated deltas."""

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk, features = _create_trunk(config)
        self._norms = wrap_norms(self.trunk)
        self._recomputes = False
        projection = nn.Linear(features, config.embed_dim, bias=False)
        nn.init.normal_(projection.weight, std=features**-0.5)
        self.projection: nn.Linear | GeneratedLinear = projection
        # of its own, so that the same seed gives the twin, which generates nothing, the same weights
        generator = torch.Generator().manual_seed(torch.initial_seed())
        self._by_kind: dict[Kind, dict[str, GeneratedLayer]] = {}
        if "norm" in config.generates:
            self._by_kind["norm"] = dict(self._norms)
        if "convolution" in config.generates:
            self._by_kind["convolution"] = dict(wrap_spatial(self.trunk, rank=config.convolution_rank, generator=generator))
        if "pointwise" in config.generates:
            rank, last_stages = config.pointwise_rank, config.pointwise_stages
            self._by_kind["pointwise"] = dict(
                wrap_pointwise(self.trunk, rank=rank, last_stages=last_stages, generator=generator)
            )
        if "projection" in config.generates:
            rank = min(config.projection_rank, config.embed_dim)
            self.projection = GeneratedLinear(projection.weight, None, rank=rank, generator=generator)
            self._by_kind["projection"] = {"projection": self.projection}
        self._generated = {name: layer for layers in self._by_kind.values() for name, layer in layers.items()}
        self.layout = parameter_layout(self._generated)

    @property
    def norms(self) -> dict[str, GeneratedNorm]:
        """The wrapped norms by their name in the trunk, whether they are generated or not."""
        return self._norms

    @property
    def generated(self) -> dict[str, GeneratedLayer]:
        """The layers with generated parameters, in the order of the layout: by name in the trunk, and `projection`."""
        return self._generated

    @property
    def num_generated(self) -> dict[Kind, int]:
        """Values of a delta by what they are; in all P."""
        return {kind: parameter_layout(layers).num_values for kind, layers in self._by_kind.items()}

    def recompute_activations(self) -> None:
        """Keep only what goes from stage to stage for the backward pass.

        Raises:
            ValueError: timm does not offer it for this trunk.
        """
        trunk: Any = self.trunk  # whatever timm made
        try:
            trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:  # timm's way of saying no
            raise ValueError(f"timm cannot recompute the activations of {self.config.trunk}: {error}") from error
        self._recomputes = True

    def forward(self, images: Tensor, delta: GroupDelta | None = None) -> Tensor:
        """Encode images under the parameters of their groups.

        Args:
            images: (B, 3, H, W), normalized.
            delta: of the groups in this batch; None for the neutral parameters.

        Returns:
            (B, D) unit vectors.
        """
        self._set_delta(delta)
        self._count_statistics(counts=True)
        # convolutions follow the layout of their input; channels last halves a training step on CPUs and feeds tensor cores
        features = self.projection(self.trunk(images.contiguous(memory_format=torch.channels_last)))
        self._count_statistics(counts=not self._recomputes)  # what passes through the norms from here on is backward, repeating
        if not torch.is_grad_enabled():
            self._set_delta(None)  # in training it stays: recomputation in backward must see it
        return F.normalize(features.float(), dim=-1)

    def _count_statistics(self, *, counts: bool) -> None:
        for norm in self._norms.values():
            norm.counts = counts

    def _set_delta(self, delta: GroupDelta | None) -> None:
        set_delta(self._generated, self.layout, delta)


def _create_trunk(config: ImageEncoderConfig) -> tuple[nn.Module, int]:
    """The network as timm makes it, and F."""
    _repair_torchvision_import()
    import timm

    name, options = config.trunk, dict(config.trunk_options)
    if name not in timm.list_models():
        raise ValueError(f"timm has no network {name!r}; see timm.list_models()")
    try:
        trunk: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **options)
        with torch.no_grad():
            features = trunk.eval()(torch.zeros(1, 3, config.image_size, config.image_size)).shape[-1]
    except Exception as error:  # timm checks few of its options; others fail somewhere in its arithmetic, or when called
        if not options:
            raise
        raise ValueError(f"timm cannot build {name} with trunk_options={options}: {error}") from error
    return trunk.train(), features


def _checked_trunk_options(options: Any) -> dict[str, int | tuple[int, ...]]:
    """The options as timm takes them: lists, which JSON has, as tuples.

    Raises:
        ValueError: no mapping, an unknown key, or a value of another kind; the message names it.
    """
    if not isinstance(options, Mapping):
        raise ValueError(f"trunk_options={options!r} is no mapping")
    checked = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for key, value in checked.items():
        sizes = value if isinstance(value, tuple) else (value,)
        # exact types: True is an int as well
        if type(value) is not TRUNK_OPTIONS.get(key) or not sizes or not all(type(size) is int and size > 0 for size in sizes):
            allowed = ", ".join(
                f"{name} ({'list of sizes' if kind is tuple else 'size'})" for name, kind in TRUNK_OPTIONS.items()
            )
            raise ValueError(f"trunk_options={dict(options)}: {key!r} is not allowed, or not so; there are {allowed}")
    return checked


_kept_alive: list[object] = []


def _repair_torchvision_import() -> None:
    """Let torchvision, which timm imports, load beside a CPU build of torch.

    Its wheels are built against CUDA torch and fail on registering two operators that nothing here uses; declaring the
    operators is enough.
    """
    if torch.version.cuda is not None or _kept_alive:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept_alive.append(library)
