"""Make a bundle the shipped model: `python -m pipeline.ship BUNDLE --trained-on PARQUET`.

For maintainers, in a checkout.  The weights are stored in half precision, and the folder is replaced only if it is small
enough, the rounded model gives the answers of the original, and it was trained on none of the pictures that the demo evaluates
on.  What `hyperclip evaluate` said of the model before is removed: it was of another.
"""

import argparse
import logging
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_prep.sample.pictures import read_sample
from infra import storage
from infra.errors import BadInputError, HyperClipError, ParityError
from pipeline.evaluate_model import parse_where
from pipeline.model_page import write_model_page
from pipeline.trained_on import TrainedOn, read_trained_on
from training.bundle import Bundle, load_bundle, save_bundle
from training.half_precision import rounded
from training.model.parameter_delta import GroupDelta
from training.model_card import RoundingError, shipped_model_card
from training.preprocess import preprocess
from training.shipped import MAX_BYTES, NOTICE_NAME, shipped_model_folder
from training.specialize import specialize

logger = logging.getLogger(__name__)

NUM_LABELS = 50
MAX_DIFFERENCE = 0.01
"""Of features, which are unit vectors.  Rounding gives some 0.0003; a tensor that must not be rounded, about 0.1 and more."""


@dataclass(frozen=True)
class Shipped:
    digest: str
    num_bytes: int
    rounding: RoundingError


def ship(bundle_uri: str, trained_on: TrainedOn, *, folder: Path) -> Shipped:
    """Replace the shipped model.

    Args:
        trained_on: the pictures the model was trained on, for the notice.
        folder: where it goes; it changes as a whole or not at all.

    Raises:
        BadInputError: the model is too large, does not fit half precision, or was trained on pictures the demo evaluates on.
        ParityError: rounded, it is another model.
    """
    evaluation = read_sample("evaluation")
    pictures = evaluation["image"].to_pylist()
    if known := trained_on.among(pictures):
        raise BadInputError(
            f"{known:,} of the {len(pictures):,} pictures that the demo evaluates on were trained on; ship a model without them"
        )
    with storage.localized(bundle_uri) as local:
        bundle = load_bundle(local)
        trained_card = (local / "README.md").read_text(encoding="utf-8")
    rounding = rounding_error(bundle, pictures, captions=evaluation["caption"].to_pylist())
    if not max(rounding.neutral, rounding.specialized, rounding.text) <= MAX_DIFFERENCE:
        raise ParityError(f"in half precision it is another model: {rounding}, allowed is {MAX_DIFFERENCE}")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    try:
        manifest = save_bundle(
            temporary,
            bundle.model,
            preprocess=bundle.preprocess,
            templates=bundle.templates,
            model_card=shipped_model_card(trained_card, rounding=rounding, trained_from=bundle.digest),
            metrics=bundle.metrics,
            precision="float16",
        )
        storage.write_atomic(str(temporary / NOTICE_NAME), trained_on.notice())
        num_bytes = sum(path.stat().st_size for path in temporary.iterdir())
        if num_bytes > MAX_BYTES:
            raise BadInputError(
                f"{bundle_uri} makes {num_bytes / 1e6:.1f} MB in half precision, and the shipped model may have "
                f"{MAX_BYTES / 1e6:.0f}: choose a smaller one; most of a small model are its token embeddings"
            )
        load_bundle(temporary)  # reproduces its golden features, or is not shipped
        shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Shipped(manifest.digest, num_bytes, rounding)


@torch.no_grad()
def rounding_error(bundle: Bundle, pictures: Sequence[bytes], *, captions: Sequence[str]) -> RoundingError:
    """How far the model that half precision leaves is from the model, on pictures and names."""
    half = replace(bundle, model=rounded(bundle.model))
    images = torch.from_numpy(np.stack([preprocess(picture, bundle.preprocess) for picture in pictures]))
    labels = list(dict.fromkeys(captions))[:NUM_LABELS]
    neutral, specialized, text, answers = [], [], [], []
    for one in (bundle, half):
        encoder = specialize(one, labels)
        neutral.append(one.model.encode_image(images))
        specialized.append(one.model.encode_image(images, GroupDelta(encoder.delta[None])))
        text.append(encoder.text_features)
        answers.append((specialized[-1] @ encoder.text_features.T).argmax(dim=1))
    return RoundingError(
        neutral=_difference(neutral),
        specialized=_difference(specialized),
        text=_difference(text),
        same_answer=(answers[0] == answers[1]).float().mean().item(),
        num_pictures=len(pictures),
        num_labels=len(labels),
    )


def _difference(found: Sequence[torch.Tensor]) -> float:
    return (found[0] - found[1]).abs().max().item()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m pipeline.ship", description=__doc__)
    parser.add_argument("bundle", metavar="BUNDLE", help="bundle folder, local or in an object store")
    parser.add_argument(
        "--trained-on",
        required=True,
        nargs="+",
        metavar="PARQUET",
        help="the pictures it was trained on, files or folders, with columns image, source and licence: NOTICE is made of them",
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="rows of these that were trained on"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        trained_on = read_trained_on(arguments.trained_on, where=parse_where(arguments.where))
        shipped = ship(arguments.bundle, trained_on, folder=shipped_model_folder())
        page = write_model_page()
    except HyperClipError as error:
        sys.exit(f"error: {error}")
    logger.info("%s: %.1f MB, bundle %s", shipped_model_folder(), shipped.num_bytes / 1e6, shipped.digest[:12])
    logger.info("float16 against float32: %s", shipped.rounding)
    logger.info("%s is up to date; now evaluate it: hyperclip evaluate --dataset PICTURES --output FOLDER", page)


if __name__ == "__main__":
    main()
