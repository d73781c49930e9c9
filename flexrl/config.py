"""YAML -> frozen, checked settings: `base:`, `--set a.b=c`, and errors that name file, line, key and cure."""

from __future__ import annotations

import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from flexrl.yaml_values import UserError as UserError
from flexrl.yaml_values import Value, nearest, nearest_file, parse, plain, read_file, show

MAX_BASES = 16


class Settings(BaseModel):
    """A frozen record of settings that refuses unknown keys, NaN, and booleans where a number is due."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_default=True,
        protected_namespaces=(),
        arbitrary_types_allowed=True,
    )
    # dotted names of what --set may change of a run that goes on
    may_change: ClassVar[tuple[str, ...]] = ()

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        if _holds_bool(value) and not _names_type(annotation, bool) and _names_number(annotation):
            raise ValueError("expected a number, found a boolean (YAML reads a bare 'yes', 'no', 'on' or 'off' as one)")
        return value


def _holds_bool(value: Any) -> bool:
    if isinstance(value, (list, dict)):
        return any(_holds_bool(item) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, bool)


def _names_type(annotation: Any, wanted: type) -> bool:
    """Whether `wanted` stands anywhere in a type annotation."""
    return annotation is wanted or any(_names_type(part, wanted) for part in typing.get_args(annotation))


def _names_number(annotation: Any) -> bool:
    return _names_type(annotation, int) or _names_type(annotation, float)


S = TypeVar("S", bound=Settings)


def text(pattern: str, expected: str) -> AfterValidator:
    """For `Annotated[str, text(...)]`: a text that matches the whole pattern, which `expected` puts in words."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"expected {expected}, found {value!r}")
        return value

    return AfterValidator(check)


def choice(key: str, options: Mapping[str, type[Settings]], default: str) -> Any:
    """A pydantic type for a mapping that is one of `options`, chosen by its `key` (`default` if it has none)."""

    def check(value: Any) -> Any:
        if not isinstance(value, (dict, Settings)):
            name = value if isinstance(value, str) and value in options else default
            raise ValueError(f"expected a mapping, such as {{{key}: {name}}}, found {reprlib.repr(value)}")
        return value

    def tag(value: Any) -> Any:
        return value.get(key, default) if isinstance(value, dict) else getattr(value, key, None)

    tagged = tuple(Annotated[model, Tag(name)] for name, model in options.items())
    return Annotated[Union[tagged], Discriminator(tag), BeforeValidator(check)]  # noqa: UP007


# A mapping with one of these keys is a choice of kind: another choice replaces it whole, its settings do not fit.
_CHOICES = ("name", "kind")


def _merge(under: dict[str, Value], over: dict[str, Value], defaults: object) -> dict[str, Value]:
    """`over` laid upon `under`, mapping by mapping; `defaults` knows what is chosen where `under` does not say."""
    for choice in _CHOICES:
        if choice in over:
            chosen = under[choice].value if choice in under else getattr(defaults, choice, over[choice].value)
            if chosen != over[choice].value:
                return over
    merged = dict(under)
    for key, value in over.items():
        old = merged.get(key)
        if old is not None and isinstance(old.value, dict) and isinstance(value.value, dict):
            value = Value(_merge(old.value, value.value, getattr(defaults, key, None)), value.where)
        merged[key] = value
    return merged


def _with_bases(path: Path, defaults: object, seen: tuple[Path, ...] = ()) -> dict[str, Value]:
    """The file's values over those of the file it names as `base:`, relative to itself."""
    if path.resolve() in seen:
        circle = " -> ".join(str(file.name) for file in (*seen, path))
        raise UserError(f"{path}: circular base: {circle}; take one 'base:' out")
    if len(seen) >= MAX_BASES:
        raise UserError(f"{path}: more than {MAX_BASES} files deep by 'base:'")
    values = read_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base.value, str):
        raise UserError(f"{base.where}: base: expected the path of a YAML file, found {show(base)}")
    under = path.parent / base.value
    if not under.exists():
        raise UserError(f"{base.where}: base: {under}: no such file{nearest_file(under)}")
    return _merge(_with_bases(under, defaults, (*seen, path.resolve())), values, defaults)


def _from_set(text: str) -> dict[str, Value]:
    """`a.b=c` as a nested mapping; c is YAML."""
    where = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UserError(f"{where}: expected KEY=VALUE, such as --set learner.learning_rate=1e-4")
    return override(key.strip(), Value(parse(value, where).value, where))


def override(key: str, value: Value) -> dict[str, Value]:
    """A layer of one setting, which a dotted `key` names."""
    nested = value
    for part in reversed(key.split(".")):
        nested = Value({part: nested}, value.where)
    return nested.value  # type: ignore[no-any-return]


def read(model: type[S], path: Path | None) -> dict[str, Value]:
    """The layer of a file's values, upon those of its `base:` files."""
    return _with_bases(path, _defaults(model)) if path is not None else {}


def _defaults(model: type[S]) -> object:
    return types.SimpleNamespace(**{name: field.default for name, field in model.model_fields.items()})


def load(model: type[S], path: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Settings from defaults, a YAML file (and its `base:` files) and `--set` texts, later ones over earlier.

    Raises UserError with one line: where it stands, what was found, what to write.
    """
    return settle(model, [read(model, path), *map(_from_set, overrides)], str(path) if path is not None else "settings")


def settle(model: type[S], layers: Sequence[dict[str, Value]], source: str) -> S:
    """Settings from layers of values over the defaults, later ones over earlier; UserError as `load`."""
    values: dict[str, Value] = {}
    for layer in layers:
        values = _merge(values, layer, _defaults(model)) if values else layer
    try:
        return model.model_validate(plain(Value(values, "")))
    except ValidationError as error:
        raise UserError(_explain(error, model, values, source)) from None


def _explain(error: ValidationError, model: type[Settings], values: dict[str, Value], source: str) -> str:
    """The first problem of a validation as one line."""
    detail = error.errors()[0]
    found: Value | None = None
    where, keys, level = source, [], Value(values, source)
    for part in detail["loc"]:
        inner = level.value.get(part) if isinstance(level.value, dict) else None
        if isinstance(level.value, list) and isinstance(part, int) and part < len(level.value):
            inner = level.value[part]
        if inner is not None:
            level = found = inner
            where = inner.where
            keys.append(str(part))
        elif detail["type"] == "missing" and part == detail["loc"][-1]:
            keys.append(str(part))
    parent = _model_at(model, detail["loc"][:-1])
    if detail["type"] == "extra_forbidden":
        group = ".".join(keys[:-1])
        names = list(parent.model_fields) if parent else []
        hint = nearest(keys[-1], names) or (f"; it has {', '.join(names)}" if names else "")
        if keys[-1].partition(".")[0] in names:
            hint = f"; write {keys[-1].partition('.')[0]} as a mapping of its own (dots are for --set)"
        return f"{where}: {group + ': ' if group else ''}no key '{keys[-1]}' here{hint}"
    message = _cure(detail, found)
    if detail["type"] == "value_error":  # of several settings together: the sentence begins with the one to change
        where = _where(message.partition(": ")[0].split("."), level, where)
    return f"{where}: {'.'.join(keys) + ': ' if keys else ''}{message}"


def _where(keys: Sequence[str], level: Value, where: str) -> str:
    """The place of the deepest of nested `keys` that stands in the values, or `where`."""
    for key in keys:
        inner = level.value.get(key) if isinstance(level.value, dict) else None
        if inner is None:
            break
        level, where = inner, inner.where
    return where


def _cure(detail: Any, found: Value | None) -> str:
    """What was expected and what was found, in words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]).replace("\n", " ")
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        words = re.findall(r"'([^']*)'", expected)
        shown = show(found)
        if kind == "union_tag_invalid":
            shown = repr(context["tag"])
        return f"expected one of {', '.join(words)}, found {shown}{nearest(shown.strip(chr(39)), words)}"
    if kind.startswith("bool"):
        return f"expected true or false, found {show(found)}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    message = message.replace("a valid list", "a list, such as [1, 2]").replace("a valid dictionary", "a mapping of settings")
    if kind.startswith(("int", "float")):
        message = message.replace("a valid integer", "a whole number").split(",")[0]
        message += " (2_000_000 and 2e6 are numbers)" if isinstance(found and found.value, str) else ""
    return f"expected {message}, found {show(found)}"


def _model_at(model: type[Settings], location: Sequence[Any]) -> type[Settings] | None:
    """The settings class that validated the mapping at `location`; choices of a union appear there by their tag."""
    current: type[Settings] | None = model
    for part in location:
        if current is None:
            return None
        if isinstance(part, int):
            continue  # which of a list of `current`
        if part in (_default(current, key) for key in _CHOICES):
            continue  # the tag that chose `current`
        field = current.model_fields.get(str(part))
        candidates = _settings_classes(field.annotation) if field else []
        if len(candidates) > 1:
            candidates = [cls for cls in candidates if any(_default(cls, key) in location for key in _CHOICES)]
        current = candidates[0] if candidates else None
    return current


def _default(model: type[Settings], key: str) -> Any:
    return model.model_fields[key].default if key in model.model_fields else None


def _settings_classes(annotation: Any) -> list[type[Settings]]:
    """The settings classes that a type annotation names."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, Settings) else []
    return [cls for part in typing.get_args(annotation) for cls in _settings_classes(part)]


def to_yaml(settings: Settings) -> str:
    """The settings complete and resolved, as YAML that `load` reads back to the same."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
