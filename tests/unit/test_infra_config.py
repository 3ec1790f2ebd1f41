"""Configuration: strict, validated once, every problem named with its place."""

import pytest
from pydantic import PositiveInt, ValidationError

from infra.config import StrictModel, content_hash, parse_config
from infra.errors import BadInputError


class Inner(StrictModel):
    lr: float = 1e-3
    """Step size."""
    steps: PositiveInt = 10


class Outer(StrictModel):
    name: str
    inner: Inner = Inner()


def test_yaml_becomes_a_typed_configuration() -> None:
    assert parse_config("name: a\ninner: {steps: 3}", Outer, source="x.yaml") == Outer(name="a", inner=Inner(steps=3))


def test_every_problem_is_listed_with_its_place_and_value() -> None:
    with pytest.raises(BadInputError) as caught:
        parse_config("inner: {steps: 0, learning_rate: 1}", Outer, source="x.yaml")
    message = str(caught.value)
    assert "x.yaml has 3 problem(s)" in message
    assert "  name: Field required" in message
    assert "  name: Field required\n" in message + "\n"  # without the whole of the section
    assert "  inner.steps: Input should be greater than 0 (got 0)" in message
    assert "  inner.learning_rate: there is no such setting" in message


def test_overrides_are_yaml_and_make_the_sections_they_need() -> None:
    config = parse_config("name: a", Outer, source="x", overrides=["inner.steps=7", "inner.lr=0.5", "name='12'"])
    assert config == Outer(name="12", inner=Inner(lr=0.5, steps=7))


def test_the_last_override_of_a_key_counts() -> None:
    assert parse_config("name: a", Outer, source="x", overrides=["name=b", "name=c"]).name == "c"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.steps", "not of the form a.b=value"),
        ("=3", "not of the form a.b=value"),
        ("name.first=3", "'name' is a value, not a section"),
        ("inner.steps=[1", "not valid YAML"),
        ("inner.stepz=1", "inner.stepz: there is no such setting; did you mean steps?"),
    ],
)
def test_a_bad_override_is_refused(override: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message.replace(".", r"\.")):
        parse_config("name: a", Outer, source="x", overrides=[override])


@pytest.mark.parametrize(("text", "message"), [("a: [", "is not valid YAML"), ("- a", "holds list"), ("", "holds NoneType")])
def test_text_that_is_no_mapping_is_refused(text: str, message: str) -> None:
    with pytest.raises(BadInputError, match=f"run.yaml {message}"):
        parse_config(text, Outer, source="run.yaml")


def test_yaml_cannot_make_python_objects() -> None:
    with pytest.raises(BadInputError, match="not valid YAML"):
        parse_config("name: !!python/object/apply:os.getcwd []", Outer, source="x")


def test_a_configuration_is_frozen_and_a_changed_copy_is_validated() -> None:
    config = Inner()
    with pytest.raises(ValidationError):
        config.steps = 3  # type: ignore[misc]
    assert config.rebuilt(steps=3) == Inner(steps=3)
    with pytest.raises(ValidationError):
        config.rebuilt(steps=-1)
    with pytest.raises(ValidationError):
        config.rebuilt(stepz=1)


def test_a_field_docstring_is_its_description() -> None:
    assert Inner.model_fields["lr"].description == "Step size."


def test_the_hash_depends_on_the_content_and_on_nothing_else() -> None:
    assert content_hash({"a": 1, "b": [1, 2]}) == content_hash({"b": [1, 2], "a": 1})
    assert content_hash(Outer(name="a")) == content_hash(Outer(name="a", inner=Inner(lr=0.001)))
    assert content_hash(Outer(name="a")) != content_hash(Outer(name="b"))
    # the address of every step rests on this number: it must not change between machines or versions
    assert content_hash({"a": "ü"}) == "fd621823002706e24604cb868a9f4f8850d6f01fb5040d49ba050482e1472437"


def test_a_number_json_cannot_hold_has_no_hash() -> None:
    with pytest.raises(ValueError, match="JSON"):
        content_hash({"a": float("nan")})
