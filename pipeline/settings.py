"""The settings of a configuration as a list, made of the models themselves: what they check is what is listed."""

import json
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


class Setting(NamedTuple):
    path: str
    """`training.optimizer.learning_rate`; NAME stands for a key that may be chosen."""
    value: str
    """What it is when it is absent, or that it must be there; and the values there are, where they are few."""
    meaning: str


def list_settings(model: type[BaseModel], *, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration, sections after their own line, in the order of the fields."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        sections = list(_models(field.annotation))
        yield Setting(path, _value(field, has_sections=bool(sections)), " ".join((field.description or "").split()))
        inner = f"{path}.NAME." if get_origin(field.annotation) is dict else f"{path}."
        seen: set[Setting] = set()
        for section in sections:  # several where one of them is chosen by its `kind`
            for setting in list_settings(section, prefix=inner):
                if setting not in seen:
                    seen.add(setting)
                    yield setting


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _choices(annotation: Any) -> list[str]:
    """The values of a Literal, or the keys of a dictionary that has such keys."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    arguments = get_args(annotation)[:1] if get_origin(annotation) is dict else get_args(annotation)
    return [choice for argument in arguments for choice in _choices(argument)]


def _value(field: FieldInfo, *, has_sections: bool) -> str:
    choices = " | ".join(_choices(field.annotation))
    if field.is_required():
        return f"required{': ' + choices if choices else ''}"
    default = field.get_default(call_default_factory=True)
    if has_sections:
        return "section" if default is not None else "section, absent"
    return choices.replace(str(default), f"{default} (default)", 1) if choices else json.dumps(default)
