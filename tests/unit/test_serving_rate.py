"""Rates and quotas of a tenant, on a clock of the test's own."""

import pytest

from serving.limits import ServingLimits
from serving.rate import Access, TokenBucket
from serving.tenants import TenantConfig, key_hash


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    clock = Clock()
    bucket = TokenBucket(2, burst_s=5, clock=clock)
    passed = 0
    for _ in range(1000):  # 100 s, ten tries a second
        if bucket.wait_s() == 0:
            bucket.take(1)
            passed += 1
        clock.now += 0.1
    assert passed == pytest.approx(10 + 2 * 100, abs=2)


def test_waiting_as_told_is_enough() -> None:
    clock = Clock()
    bucket = TokenBucket(3, burst_s=1, clock=clock)
    for _ in range(50):
        clock.now += bucket.wait_s() * (1 + 1e-9)
        assert bucket.wait_s() == 0
        bucket.take(1)


def test_one_large_call_passes_and_its_debt_is_paid_by_the_next() -> None:
    clock = Clock()
    bucket = TokenBucket(1, burst_s=2, clock=clock)
    assert bucket.wait_s() == 0
    bucket.take(32)  # far more than the burst
    assert bucket.wait_s() == pytest.approx(31)
    clock.now += 31.001
    assert bucket.wait_s() == 0


def test_replicas_share_a_rate() -> None:
    clock = Clock()
    key = (key_hash(b"k"),)
    access = Access((TenantConfig(name="a", key_sha256=key, requests_per_s=10, burst_s=1),), ServingLimits(), clock=clock)
    account = access.accounts["a"]

    def passed_in_ten_seconds() -> int:
        count = 0
        for _ in range(1000):
            clock.now += 0.01
            count += account.request_wait_s() == 0
        return count

    assert access.has_rates
    assert passed_in_ten_seconds() == pytest.approx(110, abs=2)
    access.share_among(4)
    assert passed_in_ten_seconds() == pytest.approx(25, abs=4)
    access.share_among(1)
    assert passed_in_ten_seconds() == pytest.approx(100, abs=4)


def test_one_tenant_may_not_fill_a_replica_unless_that_is_said() -> None:
    limits = ServingLimits(max_requests_in_flight=10)
    access = Access(
        (
            TenantConfig(name="a", key_sha256=(key_hash(b"a"),)),
            TenantConfig(name="b", key_sha256=(key_hash(b"b"),), max_in_flight=9),
        ),
        limits,
    )
    assert [access.accounts[name].max_in_flight for name in "ab"] == [5, 9]
    assert not access.has_rates
    alone = Access((), limits)
    assert alone.keys is None and alone.accounts["default"].max_in_flight == 10
