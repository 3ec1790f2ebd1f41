"""What is kept between two tellings of Ray."""

from serving.deployments.ray_metrics import _Kept


def test_amounts_of_a_counter_are_told_once_by_their_labels() -> None:
    told: list[tuple[float, dict[str, str]]] = []
    kept = _Kept(lambda value, labels: told.append((value, labels)), add=True)
    for status in ("200", "200", "404"):
        kept(1, {"status": status})
    kept.flush()
    kept.flush()
    assert told == [(2, {"status": "200"}), (1, {"status": "404"})]


def test_a_gauge_is_told_as_it_is_now() -> None:
    told: list[tuple[float, dict[str, str]]] = []
    kept = _Kept(lambda value, labels: told.append((value, labels)), add=False)
    for value in (1, 2, 0):
        kept(value, {})
    kept.flush()
    assert told == [(0, {})]
