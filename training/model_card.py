"""The model card that travels with a bundle, and what is added to it when the bundle becomes the shipped model."""

from dataclasses import dataclass

from jinja2 import Template

from training.checkpoint import TrainState
from training.config import TrainConfig

_CARD = Template(
    """---
license: apache-2.0
pipeline_tag: zero-shot-image-classification
tags: [hyperclip, zero-shot, edge]
---
# {{ config.model }}

{% if model.hypernetwork %}
A small image encoder, a text encoder, and a hypernetwork that turns a list of class names into parameters of the image encoder
(HyperCLIP, arXiv 2412.16777): {{ model.image.generates | join(", ") }}.  Give it class names, get a zero-shot classifier.
{% if model.hypernetwork.tokens %}
A control: its hypernetwork reads {{ model.hypernetwork.tokens }} learned tokens, not the names, so nothing is specialized.
{% endif %}
{% else %}
A small image encoder and a text encoder (SigLIP): the twin of a HyperCLIP, which generates nothing.
{% endif %}

## Training

| | |
|---|---|
| steps | {{ state.step }} |
{% if config.init_from %}
| started from | a bundle |
{% endif %}
{% if config.distillation %}
| learned besides from | a teacher's bundle, weight {{ config.distillation.weight }} |
{% endif %}
{% if config.freeze %}
| frozen for {{ config.freeze_steps }} steps | {{ config.freeze | join(", ") }} |
{% endif %}
| samples seen | {{ state.samples_seen }} |
| contrastive batch | {{ config.contrastive_batch_size }} x {{ config.accumulation_steps }} |
| conditioning groups a batch | {{ config.conditioning.groups | join(", ") }} from step {{ config.conditioning.start_step }} |
| learning rate | {{ config.optimizer.learning_rate }} |
| precision | {{ config.precision }} |
| seed | {{ config.seed }} |
| configuration and data | `{{ state.config_hash }}` |

## Use

Specialized parameters for a list of names, or the neutral ones for retrieval and indexing.  Trained on what its shards hold
and on nothing else: judge it on pictures like yours before relying on it, and mind that a name it never met says little to it.
""",
    trim_blocks=True,
    autoescape=False,
)


def model_card(config: TrainConfig, state: TrainState) -> str:
    return _CARD.render(config=config, model=config.architecture(), state=state)


@dataclass(frozen=True)
class RoundingError:
    """How far the stored model is from the trained one: largest absolute differences of features, which are unit vectors."""

    neutral: float
    """Of pictures, without names."""
    specialized: float
    """Of pictures, under the parameters made from the names."""
    text: float
    same_answer: float
    """Share of the pictures that both call the same."""
    num_pictures: int
    num_labels: int

    def __str__(self) -> str:
        return (
            f"features differ by at most {self.neutral:.1g} (neutral), {self.specialized:.1g} (specialized), {self.text:.1g} "
            f"(names); the same answer among {self.num_labels} names for {self.same_answer:.1%} "
            f"of {self.num_pictures:,} pictures"
        )


_AS_SHIPPED = Template(
    """{{ trained_card }}

## As it is shipped

The model that `hyperclip classify`, `specialize`, `export`, `evaluate` and `serve` use where no other is named.

- **Data**: drawings, such as emoji and icons, under open licences, at 64 x 64 pixels.  `NOTICE` beside this file names every
  source with its licence and its number of pictures.
- **It knows drawings, not photographs**: on a photograph its answer is a guess, and its `score`, which only says how the
  names share the picture, may be high all the same.
- **It knows the names its pictures had**: everyday English nouns.  Other languages, proper names, long descriptions, counts and
  positions mean little to it.  Nothing was done against the bias of its sources, which show what is usual where they are from.
- **Not for** decisions about people, for medicine, for safety, for reading text.  It is there to try the project, to test
  against, and to start a training from (`training.init_from`).
- **Weights**: float16, but for vectors and scalars (statistics, scales, biases), and read back to float32.  Against the trained
  weights (bundle `{{ trained_from[:12] }}`)
  {{ rounding }}.
- **Evaluation**: `evaluation.json` beside this file where it is there; docs/model.md of the project shows its figures.
""",
    trim_blocks=True,
    autoescape=False,
)


def shipped_model_card(trained_card: str, *, rounding: RoundingError, trained_from: str) -> str:
    """The card of a bundle, and what is to be known of it as the shipped model.

    Args:
        trained_from: digest of the bundle with the weights as they were trained.
    """
    return _AS_SHIPPED.render(trained_card=trained_card.rstrip(), rounding=rounding, trained_from=trained_from) + "\n"
