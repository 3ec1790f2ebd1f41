"""The encoders that a HyperCLIP is without names, as the SigLIP twin that it would be."""

from dataclasses import replace

from training.bundle import Bundle
from training.model.hyperclip import HyperClip
from training.model.registry import siglip_twin


def neutral_twin(bundle: Bundle) -> Bundle:
    """The same weights and statistics; what makes and takes deltas is left out."""
    model = HyperClip(siglip_twin(bundle.model.config))
    weights = bundle.model.state_dict()
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return replace(bundle, model=model.requires_grad_(False).eval())
