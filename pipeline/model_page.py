"""docs/model.md, the page of the shipped model: its figures, between two marks, come from the files of the model.

`python -m pipeline.model_page` writes them anew, after `evaluation.json` was put beside the bundle.
"""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from infra import artefacts
from infra.errors import BadInputError, HyperClipError
from training.bundle import read_bundle_manifest
from training.evaluation.arms import Arm
from training.evaluation.measures import Estimate
from training.evaluation.result import FamilyResult, ZeroShotResult
from training.shipped import EVALUATION_NAME, MODEL_PAGE, shipped_model_folder

logger = logging.getLogger(__name__)

PAGE_PATH = Path(__file__).parents[1] / MODEL_PAGE
"""There in a checkout only."""
BEGIN, END = "<!-- figures: written by `python -m pipeline.model_page` -->", "<!-- end of figures -->"
ARMS: tuple[Arm, ...] = ("specialized", "neutral", "swapped", "twin")


def write_model_page(path: Path = PAGE_PATH, *, folder: Path | None = None) -> Path:
    """Put the present figures into the page; what people wrote around them stays.

    Raises:
        BadInputError: the page has no place for them, or they are not of this model.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInputError(f"{path} lacks the line {BEGIN if not begin else END}, where the figures go")
    path.write_text(f"{before}{BEGIN}\n\n{figures(folder or shipped_model_folder())}\n{END}{after}", encoding="utf-8")
    return path


def figures(folder: Path) -> str:
    """What there is to know of the shipped model in numbers, as Markdown.

    Raises:
        BadInputError: `evaluation.json` is of another model.
    """
    digest = read_bundle_manifest(folder).digest
    found = f"Bundle `{digest[:12]}`. "
    evaluation = folder / EVALUATION_NAME
    if not evaluation.is_file():
        return found + "It has not been evaluated yet.\n"
    result = artefacts.read_model(str(evaluation), ZeroShotResult)
    if result.bundle_digests != (digest,):
        theirs = ", ".join(one[:12] for one in result.bundle_digests)
        raise BadInputError(f"{evaluation} is of model {theirs}, and the shipped one is {digest[:12]}; evaluate that")
    found += (
        f"Zero-shot on {result.num_pictures:,} pictures of {result.num_concepts:,} concepts ({result.dataset}), accuracy with "
        "95 % interval:\n\n"
    )
    return found + "\n".join(_table(result)) + "\n"


def _table(result: ZeroShotResult) -> Iterator[str]:
    arms = [arm for arm in ARMS if any(arm in family.accuracy for family in result.families)]
    yield "| tasks | chance | " + " | ".join(arms) + " | specialized minus neutral, points |"
    yield "|---" * (3 + len(arms)) + "|"
    for family in result.families:
        cells = [_percent(family.accuracy[arm]) if arm in family.accuracy else "" for arm in arms]
        yield f"| {family.family.title} | {family.chance:.1%} | " + " | ".join(cells) + f" | {_gain(family)} |"


def _percent(found: Estimate) -> str:
    return f"{found.mean:.1%} ({found.low:.1%} to {found.high:.1%})"


def _gain(family: FamilyResult) -> str:
    for one in family.differences:
        if one.arm == "specialized" and one.baseline == "neutral":
            found = one.difference
            return f"{100 * found.mean:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
    return ""


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        logger.info("%s is up to date", write_model_page())
    except HyperClipError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
