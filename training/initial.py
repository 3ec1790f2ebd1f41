"""Starting from the weights of a bundle, typically the SigLIP twin."""

from infra import storage
from infra.errors import BadInputError
from training.bundle import Bundle, load_bundle
from training.freezing import is_of_deltas
from training.model.hyperclip import HyperClip


def read_initial(uri: str) -> Bundle:
    """The bundle to start from.

    Raises:
        BadInputError, CorruptArtefactError: none there, or a damaged one.
    """
    with storage.localized(uri) as folder:
        return load_bundle(folder)


def start_from(model: HyperClip, bundle: Bundle, *, uri: str) -> None:
    """Give a new model the weights and statistics of a bundle.

    What only deltas need and the bundle lacks keeps its start; everything else must be there, and nothing may be left over.

    Args:
        uri: of the bundle, for the message.

    Raises:
        BadInputError: the bundle is of another architecture; the message names what does not fit.
    """
    ours, theirs = model.state_dict(), bundle.model.state_dict()
    missing = sorted(name for name in ours.keys() - theirs.keys() if not is_of_deltas(name))
    unknown = sorted(theirs.keys() - ours.keys())
    shapes = [
        f"{name} {tuple(theirs[name].shape)} instead of {tuple(ours[name].shape)}"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name].shape != theirs[name].shape
    ]
    problems = [
        f"{what} {', '.join(found[:3])}{f' and {len(found) - 3} more' if len(found) > 3 else ''}"
        for what, found in (("it lacks", missing), ("it has besides", unknown), ("it has", shapes))
        if found
    ]
    if problems:
        raise BadInputError(
            f"init_from={uri} is a {bundle.model.config.name}, whose weights do not fit {model.config.name}: "
            f"{'; '.join(problems)}. Start from a bundle of the same encoders"
        )
    model.load_state_dict({**ours, **theirs})
