"""How much each tenant may ask for: requests and pictures a second, and requests at once.

Each ingress replica keeps its own account and allows the share that falls to it: the rate divided by the number of replicas.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from serving.limits import ServingLimits
from serving.tenants import DEFAULT_TENANT, KeyRing, TenantConfig

Clock = Callable[[], float]


class TokenBucket:
    """Tokens come at a steady rate up to a bound.  A call may take more than are there as long as there is one at all: the
    debt is paid by those that come after it, so that no single call is too large to ever pass."""

    def __init__(self, rate: float, *, burst_s: float, clock: Clock = time.monotonic) -> None:
        self.rate = rate
        """Tokens a second, of all replicas together."""
        self._burst_s = burst_s
        self._clock = clock
        self._share = 1.0
        self._tokens = self._capacity
        self._updated = clock()

    @property
    def _capacity(self) -> float:
        return max(1.0, self.rate * self._share * self._burst_s)

    def set_share(self, share: float) -> None:
        """Of the rate, from now on."""
        self._refill()
        self._share = share
        self._tokens = min(self._tokens, self._capacity)

    def wait_s(self) -> float:
        """Seconds until a call may pass; 0 when it may now."""
        self._refill()
        return 0.0 if self._tokens >= 1 else (1 - self._tokens) / (self.rate * self._share)

    def take(self, tokens: float) -> None:
        self._refill()
        self._tokens -= tokens

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._capacity, self._tokens + (now - self._updated) * self.rate * self._share)
        self._updated = now


@dataclass
class TenantAccount:
    """What one tenant uses of one ingress replica."""

    name: str
    max_in_flight: int
    requests: TokenBucket | None = None
    images: TokenBucket | None = None
    in_flight: int = field(default=0)

    def request_wait_s(self) -> int:
        """Take one request; else whole seconds to wait, at least one."""
        if self.requests is None:
            return 0
        if (wait := self.requests.wait_s()) > 0:
            return math.ceil(wait)
        self.requests.take(1)
        return 0

    def images_wait_s(self, count: int) -> int:
        """Take a number of pictures; else whole seconds to wait, at least one."""
        if self.images is None:
            return 0
        if (wait := self.images.wait_s()) > 0:
            return math.ceil(wait)
        self.images.take(count)
        return 0


class Access:
    """Who may call one ingress replica, and the account of each."""

    def __init__(
        self,
        tenants: Sequence[TenantConfig],
        limits: ServingLimits,
        *,
        local_only: bool = False,
        clock: Clock = time.monotonic,
    ) -> None:
        """Args:
        tenants: without any, everybody is the default tenant and may have all of the replica.
        local_only: serve only calls that name this machine as their host.
        """
        self.keys = KeyRing(tenants) if tenants else None
        self.local_only = local_only
        most = limits.max_requests_in_flight
        self.accounts = {
            tenant.name: TenantAccount(
                name=tenant.name,
                max_in_flight=tenant.max_in_flight or max(1, most // 2),
                requests=_bucket(tenant.requests_per_s, tenant.burst_s, clock),
                images=_bucket(tenant.images_per_s, tenant.burst_s, clock),
            )
            for tenant in tenants
        } or {DEFAULT_TENANT: TenantAccount(name=DEFAULT_TENANT, max_in_flight=most)}

    @property
    def has_rates(self) -> bool:
        return any(account.requests or account.images for account in self.accounts.values())

    def share_among(self, replicas: int) -> None:
        """Divide every rate by the number of ingress replicas."""
        for account in self.accounts.values():
            for bucket in (account.requests, account.images):
                if bucket is not None:
                    bucket.set_share(1 / max(1, replicas))


def _bucket(rate: float | None, burst_s: float, clock: Clock) -> TokenBucket | None:
    return None if rate is None else TokenBucket(rate, burst_s=burst_s, clock=clock)
