"""The model card that travels with a bundle."""

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
