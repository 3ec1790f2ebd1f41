"""How a training run conditions its images: groups of a batch, their sets of names, and what they are trained by."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from infra.config import StrictModel


class ConditioningConfig(StrictModel):
    """How a contrastive batch is cut into groups, and what each group's parameters are generated from."""

    groups: tuple[PositiveInt, ...] = (1,)
    """Numbers of groups a batch is cut into; each batch draws one.  `(1,)` is the paper's reading."""
    start_step: NonNegativeInt = 0
    """Until this step nothing is conditioned: the model trains as its SigLIP twin first."""
    drop_share: float = Field(default=0.1, ge=0, le=1)
    """Share of groups encoded under the neutral parameters; keeps them as good as the twin's."""
    coherent_share: float = Field(default=0.0, ge=0, le=1)
    """Share of batches whose groups are drawn by topic, or as `coherence` says, instead of at random."""
    coherence: Literal["topic", "neighbours"] = "topic"
    """What the names of such a group have in common.  topic: the group that the data gives them.  neighbours: they are near
    each other in text space by the model's own text features, whatever data says of topics; groups grow around names drawn at
    random.  For a text encoder that knows something already: start from a twin, or set `start_step`."""
    max_similarity: float = Field(default=0.95, gt=0, le=1)
    """With `coherence: neighbours`, names with a cosine above this are likely to mean the same, so they are kept out of each
    other's groups and sets; where a name then fits nowhere it goes where there is room."""
    coherent_ramp_steps: NonNegativeInt = 0
    """Steps after `start_step` over which the share of coherent batches grows from 0 to `coherent_share`."""
    topics: tuple[str, ...] = ()
    """Topics (the part of a picture's `group` before "/") of which a coherent batch makes a group each, and one more of all
    that has none of them.  Empty: groups of any size along topics."""
    routing_weight: NonNegativeFloat = 0.0
    """Weight of the cross-entropy that says which learned delta of `generation.basis` a set should be made of: delta k + 1 for
    sets of topic k of `topics`, none for any other.  Left to themselves all learned deltas begin alike and stay so."""
    distractor_share: float = Field(default=0.0, ge=0)
    """Names from other groups added to a set, as a share of its own names."""
    loss: Literal["sigmoid", "softmax"] = "sigmoid"
    """What the images of conditioned groups are trained by.  sigmoid: SigLIP's loss over the captions of their group.  softmax:
    cross-entropy over the names of their group's set, distractors among them, which is the choice a specialized encoder makes
    when it is used; prefer it to train a hypernetwork on a frozen twin.  Groups whose condition is dropped, and all before
    `start_step`, keep the sigmoid.  A SigLIP twin takes it over the same groups, to be matched."""
    neutral_weight: NonNegativeFloat = 0.0
    """Weight of an ordinary SigLIP loss beside that of the groups: all pairs of the batch, features under the neutral
    parameters, so that these stay good and the global structure with them.  For training the encoders with groups.  Above 0
    each image is encoded twice, in one pass, so that statistics are those of both.  While image_trunk, projection, text_encoder
    and logit are all frozen it has no gradient and is left out; before `start_step`, and in batches without a condition, it is
    the loss anyway."""
    delta_penalty: NonNegativeFloat = 0.0
    """What the squared norm of a generated delta, the mean over the sets of a batch, is multiplied by and added to the loss."""

    def coherent_share_at(self, step: int) -> float:
        """Share of coherent batches at an optimizer step."""
        if step < self.start_step:
            return 0.0
        ramp = (step - self.start_step) / self.coherent_ramp_steps if self.coherent_ramp_steps else 1.0
        return self.coherent_share * min(1.0, ramp)

    def plans_by_features(self, step: int) -> bool:
        """Whether the groups of a step may depend on the features of names."""
        return self.coherence == "neighbours" and max(self.groups) > 1 and self.coherent_share_at(step) > 0
