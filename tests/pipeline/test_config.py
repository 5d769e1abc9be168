import dataclasses
from typing import ClassVar, Literal, Self

import pytest
from pydantic import Field, model_validator

from hyco.pipeline.config import Config, ConfigError, digest, override


class Inner(Config):
    incidental: ClassVar[frozenset[str]] = frozenset({"device"})
    width: int = Field(default=1, ge=0)
    device: str = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    depth: int = 2


class Outer(Config):
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    maybe: Plain | None = None
    rate: float = 0.1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"raet": 1}, "unknown option 'raet' of Outer; did you mean 'rate'?"),
        ({"zzz": 1}, "unknown option 'zzz' of Outer; known: inner, many, maybe, rate"),
        ({"inner": {"widht": 3}}, "unknown option 'inner.widht' of Outer; did you mean 'inner.width'?"),
        ({"many": [{"widht": 3}]}, "unknown option 'many.0.widht' of Outer; did you mean 'many.0.width'?"),
        ({"maybe": {"dept": 3}}, "unknown option 'maybe.dept' of Outer; did you mean 'maybe.depth'?"),
        ({"rate": "fast"}, "option 'rate' of Outer is 'fast': Input should be a valid number"),
        ({"rate": float("nan")}, "option 'rate' of Outer is nan"),
        (
            {"inner": {"width": -1}},
            "option 'inner.width' of Outer is -1: Input should be greater than or equal to 0",
        ),
    ],
)
def test_one_line_errors_by_every_door(values: dict, message: str) -> None:
    for build in (
        lambda: Outer(**values),
        lambda: Outer.model_validate(values),
        lambda: Outer().replace(**values),
    ):
        with pytest.raises(ConfigError) as caught:
            build()
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_required_and_several_errors() -> None:
    class Needs(Config):
        source: str

    with pytest.raises(ConfigError, match="option 'source' of Needs is required; unknown option 'sourc'"):
        Needs(sourc="x")
    with pytest.raises(ConfigError, match="Needs"):
        Needs.model_validate_json("{torn")


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Outer().rate = 3  # type: ignore[misc]


def test_digest_names_what_matters() -> None:
    assert (
        digest(Outer())
        == digest(Outer(rate=0.1))
        == digest(Outer.model_validate_json(Outer().model_dump_json()))
    )
    assert len(digest(Outer())) == 16
    assert digest(Outer(rate=0.2)) != digest(Outer())
    assert digest(Outer(inner=Inner(width=2))) != digest(Outer())
    assert digest(Outer(inner=Inner(device="cpu"), many=())) == digest(Outer())
    assert digest(Outer(maybe=Plain(depth=3))) != digest(Outer(maybe=Plain()))
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_a_name_may_look_like_a_number() -> None:
    class Named(Config):
        run: str = ""
        parent: str | None = None
        names: tuple[str, ...] = ()
        inner: Inner = Inner()

    asked = override(Named(), ["run=2024", "parent=null", "inner.device=0", 'names=["a"]'])
    assert asked == Named(run="2024", parent=None, inner=Inner(device="0"), names=("a",))
    assert override(Named(), ["run=null", "parent=1e3"]) == Named(run="null", parent="1e3")
    assert override(Named(), ['run="2024"']).run == "2024"


def test_override() -> None:
    changed = override(Outer(), ["rate=0.5", "inner.width=7", "inner.device=cpu"])
    assert changed == Outer(rate=0.5, inner=Inner(width=7, device="cpu"))
    for wrong, message in [
        ("rate", "'rate' is not FIELD=VALUE"),
        ("raet=1", "did you mean 'rate'"),
        ("inner.widht=1", r"did you mean 'inner\.width'"),
        ("rate=fast", "is 'fast'"),
        ("rate.x=1", "holds no fields"),
    ]:
        with pytest.raises(ConfigError, match=message):
            override(Outer(), [wrong])


class Bare(Config):
    recipe: Outer = Outer()
    other: Inner = Inner()


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("recipe.width=5", "unknown option 'recipe.width' of Bare; did you mean 'recipe.inner.width'?"),
        ("depth=5", "unknown option 'depth' of Bare; did you mean 'recipe.maybe.depth'?"),
        ("width=5", "unknown option 'width' of Bare; did you mean 'other.width'?"),  # the shallowest
        ("recipe.devise=5", "did you mean 'recipe.inner.device'?"),
        ("recipe.zzz=5", "known: inner, many, maybe, rate"),
        ("recipe.inner.width=-1", "option 'recipe.inner.width' of Bare is -1"),
    ],
)
def test_a_wrong_field_is_searched_for_below(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(Bare(), [assignment])
    assert message in str(caught.value)


def test_fields_of_one_name_are_all_named() -> None:
    class Two(Config):
        left: Inner = Inner()
        right: Inner = Inner()

    with pytest.raises(ConfigError, match=r"did you mean 'left\.width' or 'right\.width'\?"):
        override(Two(), ["width=1"])


def test_a_value_outside_a_closed_set_names_the_nearest() -> None:
    class Closed(Config):
        kind: Literal["cosine", "constant"] = "cosine"

    with pytest.raises(ConfigError, match=r"is 'cosin': Input should be .*; did you mean 'cosine'\?"):
        Closed(kind="cosin")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"is 7: Input should be 'cosine' or 'constant'$"):
        Closed.model_validate({"kind": 7})


def test_what_several_options_must_satisfy_names_their_owner() -> None:
    class Pair(Config):
        low: int = 0
        high: int = 1

        @model_validator(mode="after")
        def _ordered(self) -> Self:
            if self.low > self.high:
                raise ValueError(f"low {self.low} exceeds high {self.high}")
            return self

    class Holder(Config):
        pair: Pair = Pair()

    with pytest.raises(ConfigError, match=r"^Pair: low 3 exceeds high 1$"):
        Pair(low=3)
    with pytest.raises(ConfigError, match=r"^option 'pair' of Holder: low 3 exceeds high 1$"):
        Holder.model_validate({"pair": {"low": 3}})
