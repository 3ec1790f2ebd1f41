"""Topics of pictures, and coherent groups of one topic each.

A picture's topic is the part of its `group` before the first "/".  Where a run names topics, a coherent batch makes a group of
each, and the learned deltas of the hypernetwork's basis can be told apart by them: delta k + 1 is for sets of topic k, and any
other set has none.  Shapes: N contrastive batch, G groups.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

OTHER_SETS = 0
"""The way of sets that are of no one topic: no delta."""

MIN_TOPIC_SAMPLES = 4
"""A topic with fewer samples in the batch goes with the others: it would make no set."""


def topic_of(group: str | None) -> str | None:
    """The topic that a group belongs to; None where it is not known."""
    topic = (group or "").partition("/")[0].strip()
    return topic if topic.strip("?") else None  # "?/?" is how some sets say that they do not know


def stable_id(text: str) -> int:
    """The same int64 in every process and run, unlike hash()."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def topic_id(group: str | None) -> int:
    """Of a sample's topic, or of none."""
    return stable_id(topic_of(group) or "")


def cut_by_topic(topic_ids: np.ndarray, topics: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """One group of each topic that the batch has, and one of all the rest.

    Args:
        topic_ids: (N,) int64, see `topic_id`.
        topics: those that get a group.

    Returns:
        (N,) group of each sample; (G,) learned delta of each group.
    """
    number = {stable_id(topic): place for place, topic in enumerate(topics, start=OTHER_SETS + 1)}
    delta_of_sample = np.array([number.get(topic, OTHER_SETS) for topic in topic_ids.tolist()])
    rare = np.bincount(delta_of_sample, minlength=len(topics) + 1) < MIN_TOPIC_SAMPLES
    delta_of_sample[rare[delta_of_sample]] = OTHER_SETS
    delta_of_group, group_index = np.unique(delta_of_sample, return_inverse=True)
    return group_index, delta_of_group
