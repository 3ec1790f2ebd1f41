"""Names from other files beside those of an evaluation set, for tasks of kind `held_out_among_known`."""

from dataclasses import replace

from infra.config import content_hash
from training.evaluation.evaluation_set import EvaluationSet, Reading


def beside_known(pictures: EvaluationSet, known: Reading) -> EvaluationSet:
    """The same pictures with further names, which no picture shows.

    Of the known names those are taken whose topic the pictures have as well, and that differ from all of theirs in more than
    case: one name must not be right and wrong.
    """
    own = pictures.objects
    topics = {topic for topic in own.topic_of_class if topic is not None}
    taken = {name.casefold() for name in own.names}
    chosen: dict[str, str] = {}
    for name, topic in zip(known.names, known.topic_of_class, strict=True):
        if topic in topics and name.casefold() not in taken:
            taken.add(name.casefold())
            chosen[name] = topic
    objects = replace(
        own,
        names=(*own.names, *chosen),
        topic_of_class=(*own.topic_of_class, *chosen.values()),
        num_known=own.num_known + len(chosen),
    )
    identity = content_hash({"pictures": pictures.identity, "known": list(chosen.items())})
    return replace(pictures, objects=objects, identity=identity)
