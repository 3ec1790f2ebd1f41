"""Who calls: one API key or several for each tenant, of which only hashes are kept.

A key is 256 random bits, so its plain SHA-256 gives nothing away and needs no salt and no slow hash.
"""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from typing import Annotated, Any

import yaml
from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from infra.config import StrictModel
from infra.errors import BadInputError

DEFAULT_TENANT = "default"
"""Whose tasks they are when no keys are configured."""
TENANTS_VARIABLE = "HYPERCLIP_TENANTS"
"""Environment variable with a YAML or JSON list in the form of `serving.tenants`, for a secret of the cluster."""
KEY_PREFIX = "hck_"
"""By which a leaked key is found in a search for secrets."""
MAX_KEY_BYTES = 256

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class TenantConfig(StrictModel):
    """A customer: its name, its keys, and how much it may ask of one service."""

    name: Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_-]{0,62}$")]
    """Part of the address of its tasks: another name is another tenant.  `default` has those made without keys."""
    key_sha256: Annotated[tuple[Sha256, ...], Field(min_length=1)]
    """Of its keys, as `hyperclip serve-key` prints them; two while one takes the place of the other."""
    requests_per_s: PositiveFloat | None = None
    """On average over all ingress replicas; no bound when absent."""
    images_per_s: PositiveFloat | None = None
    """Pictures, likewise."""
    burst_s: PositiveFloat = 10
    """How many seconds' worth may come at once after a rest."""
    max_in_flight: PositiveInt | None = None
    """Requests at once in one ingress replica; half of `limits.max_requests_in_flight` when absent."""


def checked_tenants(tenants: Sequence[TenantConfig]) -> tuple[TenantConfig, ...]:
    """The tenants, no two of which share a name or a key.

    Raises:
        ValueError: two do.
    """
    names = [tenant.name for tenant in tenants]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two tenants have the name {min(doubled)!r}")
    keys = [key for tenant in tenants for key in tenant.key_sha256]
    if len(set(keys)) < len(keys):
        raise ValueError("a key is there twice; every key belongs to one tenant")
    return tuple(tenants)


def tenants_of_environment() -> tuple[TenantConfig, ...]:
    """What the environment variable `HYPERCLIP_TENANTS` holds; nothing when it is not set.

    Raises:
        BadInputError: it holds something else.
    """
    if not (text := os.environ.get(TENANTS_VARIABLE, "").strip()):
        return ()
    try:
        return checked_tenants(TypeAdapter(tuple[TenantConfig, ...]).validate_python(yaml.safe_load(text)))
    except ValidationError as error:  # without what was given: somebody may have put a key there
        found = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(str, found["loc"])) or "(top)"
        raise BadInputError(f"{TENANTS_VARIABLE}: {place}: {found['msg']}") from None
    except yaml.YAMLError:
        raise BadInputError(f"{TENANTS_VARIABLE} is not valid YAML") from None
    except ValueError as error:
        raise BadInputError(f"{TENANTS_VARIABLE}: {error}") from error


def new_key() -> tuple[str, str]:
    """A new random key and its SHA-256."""
    key = KEY_PREFIX + secrets.token_urlsafe(32)
    return key, key_hash(key.encode())


def key_hash(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()


class KeyRing:
    """Finds the tenant of a key."""

    def __init__(self, tenants: Sequence[TenantConfig]) -> None:
        self._entries = [(digest.encode(), tenant.name) for tenant in tenants for digest in tenant.key_sha256]

    def tenant(self, key: bytes) -> str | None:
        """Its name, or None for an unknown key.  Takes as long for a good guess as for a bad one."""
        if len(key) > MAX_KEY_BYTES:
            return None
        digest = key_hash(key).encode()
        found = None
        for known, name in self._entries:
            if hmac.compare_digest(digest, known):
                found = name
        return found


def tenant_of(request: Any) -> str:
    """The tenant that the middleware has found for a Starlette request."""
    return str(request.scope["state"]["tenant"])
