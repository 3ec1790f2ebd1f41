"""The strict base of every configuration, its hash, and loading it from YAML.

A configuration is frozen and refuses unknown keys.  Change one with `rebuilt`, which validates again;
`model_copy(update=...)` does not.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.errors import BadInputError

Config = TypeVar("Config", bound=BaseModel)


class StrictModel(BaseModel):
    """Frozen, unknown keys forbidden, field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())

    def rebuilt(self, **changes: Any) -> Self:
        """A validated copy with some fields changed."""
        return type(self).model_validate({**self.model_dump(), **changes})


def content_hash(value: Any) -> str:
    """Hex SHA-256 of the canonical JSON of a configuration or a plain JSON value."""
    plain = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def flattened(config: BaseModel, *, prefix: str = "") -> dict[str, str]:
    """Every setting as text under its path, `optimizer.learning_rate`; what is no section of ours is JSON."""
    found: dict[str, str] = {}
    plain = config.model_dump(mode="json")
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            found |= flattened(value, prefix=f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(plain[name])
    return found


def parse_config(text: str, model: type[Config], *, source: str, overrides: Sequence[str] = ()) -> Config:
    """Validate YAML text once, after applying `a.b=value` overrides (values are YAML too).

    Raises:
        BadInputError: not YAML, an unknown key, a wrong type or value; every problem is listed with its place.
    """
    tree = config_tree(text, source=source)
    for override in overrides:
        path, value = parse_override(override)
        set_value(tree, path, value)
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems = "\n".join(f"  {problem}" for problem in problems_of(error, model))
        raise BadInputError(f"{source} has {error.error_count()} problem(s):\n{problems}") from error


def config_tree(text: str, *, source: str) -> dict[str, Any]:
    """YAML text as plain values, not validated.

    Raises:
        BadInputError: not YAML, or no mapping.
    """
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInputError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise BadInputError(f"{source} holds {type(tree).__name__}, expected a mapping of settings")
    return tree


def parse_override(override: str) -> tuple[str, Any]:
    """`a.b=value` as path and value.

    Raises:
        BadInputError: not of that form, or the value is not YAML.
    """
    path, separator, value = override.partition("=")
    if not separator or not path:
        raise BadInputError(f"override {override!r} is not of the form a.b=value")
    try:
        return path, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInputError(f"override {override!r}: the value is not valid YAML: {error}") from error


def set_value(tree: dict[str, Any], path: str, value: Any) -> None:
    """Put a value in the place `a.b` of a tree; sections on the way are made.

    Raises:
        BadInputError: a part of the way is a value.
    """
    *parents, leaf = path.split(".")
    node = tree
    for key in parents:
        child = node.setdefault(key, {})
        if not isinstance(child, dict):
            raise BadInputError(f"cannot set {path!r}: {key!r} is a value, not a section")
        node = child
    node[leaf] = value


def problems_of(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Every problem of a configuration, one line each: its place, what is wrong, the value where it is a single one."""
    return [_place(found["loc"]) + _problem(found, model) for found in error.errors()]


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) + ": " if location else ""


def _problem(error: Any, model: type[BaseModel]) -> str:
    if error["type"] != "extra_forbidden":
        message = error["msg"].removeprefix("Value error, ")
        whole_section = isinstance(error["input"], dict) and error["type"] in ("missing", "value_error")
        return message if whole_section else f"{message} (got {_short(error['input'])})"
    schema = model.model_json_schema()
    known = {name for part in (schema, *schema.get("$defs", {}).values()) for name in part.get("properties", {})}
    return "there is no such setting" + did_you_mean(str(error["loc"][-1]), known)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses a name: the known one that is nearest to it, or nothing."""
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
