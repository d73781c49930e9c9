"""YAML -> frozen, checked settings: `base:`, `--set a.b=c`, and errors that name file, line, key and cure."""

from __future__ import annotations

import difflib
import re
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)

MAX_FILE_BYTES = 1_000_000
MAX_BASES = 16


class UserError(Exception):
    """A mistake of the user's: one line that says where, what, and what to write; verbs print it and exit with code 2."""


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


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with numbers as people write them: 3e-4 is a number, 010 is ten, 12:30 is text."""


_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag not in _NUMBER_TAGS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.inf$|^\.nan$"),
    list("-+.0123456789"),
)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    if len(text) > 30:  # CPython takes quadratic time over digits, and refuses more than 4,300
        raise yaml.constructor.ConstructorError(None, None, "a number of more than 30 digits", node.start_mark)
    return int(text.replace("_", ""))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


@dataclass(frozen=True)
class _Value:
    """A plain YAML value and where it stands: `where` of a mapping's key is that of the key."""

    value: Any  # a scalar, list[_Value] or dict[str, _Value]
    where: str


def _read_file(path: Path) -> dict[str, _Value]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; settings are small, is this the right file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_nearest_file(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; settings are YAML") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    value = _parse(text, str(path))
    if value.value is None:
        raise UserError(f"{path}: is empty; write settings such as 'num_steps: 1_000_000', or leave --config away")
    if not isinstance(value.value, dict):
        raise UserError(f"{value.where}: expected a mapping of settings such as 'num_steps: 1_000_000', found {_show(value)}")
    return value.value


def _nearest_file(path: Path) -> str:
    siblings = [str(file) for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    return _nearest(str(path), siblings)


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _parse(text: str, source: str) -> _Value:
    """One YAML document as values with places; UserError for anything that is not plain YAML."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return _Value(None, f"{source}:1") if node is None else _convert(loader, node, source, depth=0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _place(source: str, node: yaml.Node) -> str:
    """Where a value stands: file and line; a `--set` is one line."""
    return source if source.startswith("--set ") else f"{source}:{node.start_mark.line + 1}"


def _convert(loader: _Loader, node: yaml.Node, source: str, depth: int) -> _Value:
    where = _place(source, node)
    if depth > 20:
        raise UserError(f"{where}: nested more than 20 deep; no settings are")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise UserError(f"{where}: not valid YAML for settings: the tag {node.tag}; write plain values")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, _Value] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            key_where = _place(source, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{key_where}: a key must be a word")
            if key in result:
                raise UserError(f"{key_where}: the key '{key}' stands here a second time; keep one")
            result[key] = _Value(_convert(loader, value_node, source, depth + 1).value, key_where)
        return _Value(result, where)
    if isinstance(node, yaml.SequenceNode):
        return _Value([_convert(loader, item, source, depth + 1) for item in node.value], where)
    return _Value(loader.construct_object(node), where)


def _plain(value: _Value) -> Any:
    if isinstance(value.value, dict):
        return {key: _plain(item) for key, item in value.value.items()}
    if isinstance(value.value, list):
        return [_plain(item) for item in value.value]
    return value.value


def _show(value: _Value | None) -> str:
    """A value as a short piece of text for a message."""
    if value is None:
        return "nothing"
    plain = _plain(value)
    if isinstance(plain, dict):
        return "a mapping"
    if isinstance(plain, list):
        return "a list"
    text = {True: "true", False: "false", None: "null"}[plain] if plain is None or isinstance(plain, bool) else repr(plain)
    return text if len(text) <= 60 else text[:57] + "..."


# A mapping with one of these keys is a choice of kind: another choice replaces it whole, its settings do not fit.
_CHOICES = ("name", "kind")


def _merge(under: dict[str, _Value], over: dict[str, _Value], defaults: object) -> dict[str, _Value]:
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
            value = _Value(_merge(old.value, value.value, getattr(defaults, key, None)), value.where)
        merged[key] = value
    return merged


def _with_bases(path: Path, defaults: object, seen: tuple[Path, ...] = ()) -> dict[str, _Value]:
    """The file's values over those of the file it names as `base:`, relative to itself."""
    if path.resolve() in seen:
        circle = " -> ".join(str(file.name) for file in (*seen, path))
        raise UserError(f"{path}: circular base: {circle}; take one 'base:' out")
    if len(seen) >= MAX_BASES:
        raise UserError(f"{path}: more than {MAX_BASES} files deep by 'base:'")
    values = _read_file(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base.value, str):
        raise UserError(f"{base.where}: base: expected the path of a YAML file, found {_show(base)}")
    under = path.parent / base.value
    if not under.exists():
        raise UserError(f"{base.where}: base: {under}: no such file{_nearest_file(under)}")
    return _merge(_with_bases(under, defaults, (*seen, path.resolve())), values, defaults)


def _from_set(text: str) -> dict[str, _Value]:
    """`a.b=c` as a nested mapping; c is YAML."""
    where = f"--set {text}"
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"{where}: expected KEY=VALUE, such as --set learner.learning_rate=1e-4")
    nested = _Value(_parse(value, where).value, where)
    for part in reversed(parts):
        nested = _Value({part: nested}, where)
    return nested.value  # type: ignore[no-any-return]


def load(model: type[S], path: Path | None = None, overrides: Sequence[str] = ()) -> S:
    """Settings from defaults, a YAML file (and its `base:` files) and `--set` texts, later ones over earlier.

    Raises UserError with one line: where it stands, what was found, what to write.
    """
    defaults = types.SimpleNamespace(**{name: field.default for name, field in model.model_fields.items()})
    values = _with_bases(path, defaults) if path is not None else {}
    for text in overrides:
        values = _merge(values, _from_set(text), defaults)
    try:
        return model.model_validate(_plain(_Value(values, "")))
    except ValidationError as error:
        source = str(path) if path is not None else "settings"
        raise UserError(_explain(error, model, values, source)) from None


def _explain(error: ValidationError, model: type[Settings], values: dict[str, _Value], source: str) -> str:
    """The first problem of a validation as one line."""
    detail = error.errors()[0]
    found: _Value | None = None
    where, keys, level = source, [], _Value(values, source)
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
        hint = _nearest(keys[-1], names) or (f"; it has {', '.join(names)}" if names else "")
        if keys[-1].partition(".")[0] in names:
            hint = f"; write {keys[-1].partition('.')[0]} as a mapping of its own (dots are for --set)"
        return f"{where}: {group + ': ' if group else ''}no key '{keys[-1]}' here{hint}"
    message = _cure(detail, found)
    if detail["type"] == "value_error":  # of several settings together: the sentence begins with the one to change
        where = _where(message.partition(": ")[0].split("."), level, where)
    return f"{where}: {'.'.join(keys) + ': ' if keys else ''}{message}"


def _where(keys: Sequence[str], level: _Value, where: str) -> str:
    """The place of the deepest of nested `keys` that stands in the values, or `where`."""
    for key in keys:
        inner = level.value.get(key) if isinstance(level.value, dict) else None
        if inner is None:
            break
        level, where = inner, inner.where
    return where


def _cure(detail: Any, found: _Value | None) -> str:
    """What was expected and what was found, in words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"]).replace("\n", " ")
    if kind in ("literal_error", "union_tag_invalid"):
        expected = context.get("expected") or context["expected_tags"]
        words = re.findall(r"'([^']*)'", expected)
        shown = _show(found)
        if kind == "union_tag_invalid":
            shown = repr(context["tag"])
        return f"expected one of {', '.join(words)}, found {shown}{_nearest(shown.strip(chr(39)), words)}"
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if kind.startswith(("int", "float")):
        message = message.replace("a valid integer", "a whole number").split(",")[0]
        message += " (2_000_000 and 2e6 are numbers)" if isinstance(found and found.value, str) else ""
    return f"expected {message}, found {_show(found)}"


def _model_at(model: type[Settings], location: Sequence[Any]) -> type[Settings] | None:
    """The settings class that validated the mapping at `location`; choices of a union appear there by their tag."""
    current: type[Settings] | None = model
    for part in location:
        if current is None:
            return None
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
