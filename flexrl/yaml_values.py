"""Plain YAML with the place of each value: numbers as people write them, limits, and what is wrong in one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_FILE_BYTES = 1_000_000


class UserError(Exception):
    """A mistake of the user's: one line that says where, what, and what to write; verbs print it and exit with code 2."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with numbers as people write them: 3e-4 is a number, 010 is ten, 12:30 is text.

    Without aliases: ten of ten of ten are more than fits into memory.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, "an alias; write the value out", self.peek_event().start_mark)
        return super().compose_node(parent, index)


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
class Value:
    """A plain YAML value and where it stands: `where` of a mapping's key is that of the key."""

    value: Any  # a scalar, list[Value] or dict[str, Value]
    where: str


def read_file(path: Path) -> dict[str, Value]:
    """A file that is one mapping; UserError with the cure for anything else."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: more than {MAX_FILE_BYTES:,} bytes; settings are small, is this the right file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{nearest_file(path)}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; settings are YAML") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    value = parse(text, str(path))
    if value.value is None:
        raise UserError(f"{path}: is empty; write settings such as 'num_steps: 1_000_000', or leave the file away")
    if not isinstance(value.value, dict):
        raise UserError(f"{value.where}: expected a mapping of settings such as 'num_steps: 1_000_000', found {show(value)}")
    return value.value


def nearest_file(path: Path) -> str:
    """A hint at a YAML file beside it whose name is like its own, or begins so, or nothing."""
    names = {file.stem: file for file in sorted(path.parent.glob("*.y*ml"))} if path.parent.is_dir() else {}
    beginnings = {name[: len(path.stem)]: file for name, file in reversed(names.items())}
    close = difflib.get_close_matches(path.stem, [*names, *beginnings], n=1, cutoff=0.6)
    return f"; did you mean '{(beginnings | names)[close[0]]}'?" if close else ""


def nearest(word: str, words: Sequence[str]) -> str:
    """A hint at the word most like it, or nothing."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def parse(text: str, source: str) -> Value:
    """One YAML document as values with places; UserError for anything that is not plain YAML."""
    loader: _Loader | None = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return Value(None, f"{source}:1") if node is None else _convert(loader, node, source, depth=0)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{source}: nested too deep; no settings are") from None
    finally:
        if loader is not None:
            loader.dispose()


def _place(source: str, node: yaml.Node) -> str:
    """Where a value stands: file and line; a `--set` is one line."""
    return source if source.startswith("--set ") else f"{source}:{node.start_mark.line + 1}"


def _convert(loader: _Loader, node: yaml.Node, source: str, depth: int) -> Value:
    where = _place(source, node)
    if depth > 20:
        raise UserError(f"{where}: nested more than 20 deep; no settings are")
    if not isinstance(node, yaml.ScalarNode) and node.tag not in ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
        raise UserError(f"{where}: not valid YAML for settings: the tag {node.tag}; write plain values")
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            key_where = _place(source, key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"{key_where}: a key must be a word")
            if key in result:
                raise UserError(f"{key_where}: the key '{key}' stands here a second time; keep one")
            result[key] = Value(_convert(loader, value_node, source, depth + 1).value, key_where)
        return Value(result, where)
    if isinstance(node, yaml.SequenceNode):
        return Value([_convert(loader, item, source, depth + 1) for item in node.value], where)
    return Value(loader.construct_object(node), where)


def plain(value: Value) -> Any:
    """Without its places."""
    if isinstance(value.value, dict):
        return {key: plain(item) for key, item in value.value.items()}
    if isinstance(value.value, list):
        return [plain(item) for item in value.value]
    return value.value


def placed(value: Any, where: str) -> Value:
    """A plain value whose every part stands at one place."""
    if isinstance(value, dict):
        return Value({key: placed(item, where) for key, item in value.items()}, where)
    if isinstance(value, list):
        return Value([placed(item, where) for item in value], where)
    return Value(value, where)


def show(value: Value | None) -> str:
    """A value as a short piece of text for a message."""
    if value is None:
        return "nothing"
    found = plain(value)
    if isinstance(found, dict):
        return "a mapping"
    if isinstance(found, list):
        return "a list"
    text = {True: "true", False: "false", None: "null"}[found] if found is None or isinstance(found, bool) else repr(found)
    return text if len(text) <= 60 else text[:57] + "..."
