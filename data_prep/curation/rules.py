"""The rules of a curation, one after the other: each says of every sample whether it may stay.

Rules on single samples judge all samples.  Rules that compare samples (leaks and duplicates) look at what those before them
left, and drop nothing else: a picture that is too small is nobody's original.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from data_prep.curation.dedup import DedupConfig, first_of_equal
from data_prep.curation.filters import FilterConfig, LanguageConfig, filter_results
from data_prep.curation.leaks import EvaluationPictures, leak_result
from data_prep.curation.near import UNKNOWN, Hashes, greedy_duplicates
from data_prep.curation.pool import Pool
from data_prep.curation.rule_result import RuleResult
from data_prep.curation.scores import ScoreConfig, score_result

NOT_DROPPED = -1


def apply_rules(
    pool: Pool,
    *,
    filters: FilterConfig,
    language: LanguageConfig | None,
    scores: Sequence[ScoreConfig],
    evaluation: EvaluationPictures | None,
    leak_distance: int,
    dedup: DedupConfig,
) -> tuple[list[RuleResult], np.ndarray]:
    """Every rule's result, and (N,) int64: the number of the first rule that drops each sample, -1 for those that stay."""
    rules: list[Callable[[np.ndarray], RuleResult]] = [
        *(lambda _, result=result: result for result in _single(pool, filters, language, scores)),
    ]
    if evaluation is not None:
        rules.append(lambda left: leak_result(pool, left, evaluation, max_distance=leak_distance))
    rules.append(lambda left: exact_result(pool, left))
    if (distance := dedup.max_hamming_distance) is not None:
        rules.append(lambda left: perceptual_result(pool, left, distance, same_concept_only=dedup.same_concept_only))
    results = []
    dropped_by = np.full(len(pool), NOT_DROPPED, np.int64)
    for number, rule in enumerate(rules):
        result = rule(dropped_by == NOT_DROPPED)
        dropped_by[~result.keep & (dropped_by == NOT_DROPPED)] = number
        results.append(result)
    return results, dropped_by


def _single(
    pool: Pool, filters: FilterConfig, language: LanguageConfig | None, scores: Sequence[ScoreConfig]
) -> Iterator[RuleResult]:
    yield readable_result(pool)
    yield from filter_results(pool, filters, language)
    for config in scores:
        yield score_result(pool, config)


def readable_result(pool: Pool) -> RuleResult:
    """Drop pictures that do not decode, and samples of damaged shards."""
    names = pool.error.names or ["truncated"]
    return RuleResult.of("readable", [(reason, pool.error.codes == code) for code, reason in enumerate(names)])


def exact_result(pool: Pool, left: np.ndarray) -> RuleResult:
    """Keep the first of the same bytes."""
    places = np.flatnonzero(left)
    first = first_of_equal(pool.digest[places])
    match = np.full(len(pool), -1, np.int64)
    match[places] = np.where(first >= 0, places[first], -1)
    return RuleResult.of("exact", [("duplicate_exact", match >= 0)], match=match)


def perceptual_result(pool: Pool, left: np.ndarray, max_distance: int, *, same_concept_only: bool) -> RuleResult:
    """Keep the first of those that look alike; the score is the distance."""
    places = np.flatnonzero(left & pool.has_phash)
    concepts = pool.concept.codes if same_concept_only else np.full(len(pool), UNKNOWN, np.int64)
    found = greedy_duplicates(Hashes(pool.phash[places], concepts[places]), max_distance=max_distance)
    match, score = np.full(len(pool), -1, np.int64), np.full(len(pool), np.nan, np.float32)
    hit = found.place >= 0
    match[places[hit]], score[places[hit]] = places[found.place[hit]], found.distance[hit]
    return RuleResult.of("perceptual", [("duplicate_perceptual", match >= 0)], score=score, match=match)
