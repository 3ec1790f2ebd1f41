"""What the steps of the showcase left: answers of the trained model, and beside them those of the shipped one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from infra import artefacts, storage
from pipeline.shipped_step import ANSWERS_NAME, ShippedAnswers
from pipeline.showcase_steps import PREDICTIONS_NAME, ServedPrediction, ServedPredictions
from training.evaluation.result import ZeroShotResult
from training.evaluation.result_files import read_result


@dataclass(frozen=True)
class Showcase:
    served: ServedPredictions
    shipped: ShippedAnswers | None
    shipped_evaluation: ZeroShotResult | None
    """Both are there where the run asked the shipped model, or neither."""

    def pairs(self) -> Iterator[tuple[ServedPrediction, ServedPrediction | None]]:
        """Every picture: the answer of the trained model, and that of the shipped one where it was asked."""
        theirs = {one.sample: one for one in self.shipped.predictions} if self.shipped else {}
        for one in self.served.predictions:
            yield one, theirs.get(one.sample)


def read_showcase(uris: Mapping[str, str]) -> Showcase | None:
    """Args: uris: output of each step by its name; None where the run has no showcase."""
    if "serve" not in uris:
        return None
    served = artefacts.read_model(storage.join(uris["serve"], PREDICTIONS_NAME), ServedPredictions)
    if "shipped" not in uris:
        return Showcase(served, None, None)
    shipped = artefacts.read_model(storage.join(uris["shipped"], ANSWERS_NAME), ShippedAnswers)
    return Showcase(served, shipped, read_result(uris["shipped"]))


def showcase_table(showcase: Showcase) -> Table:
    """For a terminal: a picture a row, a model a column."""
    models = ["this run's model", *(["shipped model"] if showcase.shipped else [])]
    table = Table("picture of", *models, box=None)
    for trained, shipped in showcase.pairs():
        table.add_row(escape(trained.truth), *(_cell(one) for one in (trained, shipped) if one is not None))
    return table


def _cell(one: ServedPrediction) -> str:
    colour, mark = ("green", "✓") if one.truth == one.predicted else ("red", "✗")
    return f"[{colour}]{mark} {escape(one.predicted)}[/] [dim]{one.score:.0%}[/]"
