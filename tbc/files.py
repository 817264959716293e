"""Files of people, YAML or TOML, to plain values.

YAML is read by the rules of YAML 1.2: only ``true`` and ``false`` are yes and no, ``no`` and ``12:30`` are
text, and so are dates (TOML's dates become text). What PyYAML would let pass is refused: a key given twice,
keys that are not text, aliases that contain themselves, and files whose aliases unfold beyond all bounds.
"""

from __future__ import annotations

import datetime
import functools
import math
import re
from os import PathLike
from typing import Any, Final

__all__ = ["DEPTH_MAX", "SIZE_MAX", "VALUES_MAX", "Problem", "join", "read_file", "read_values"]

#: A path within the file (empty: the file) and what is wrong there.
Problem = tuple[str, str]

#: Bytes of a file.
SIZE_MAX: Final = 2**20
#: Values of a file once its aliases are unfolded.
VALUES_MAX: Final = 100_000
#: Levels of lists and mappings within each other.
DEPTH_MAX: Final = 64

_TOO_MANY = f"holds more than {VALUES_MAX:,} values once its aliases are unfolded"
_TOO_DEEP = f"lists and mappings lie more than {DEPTH_MAX} deep"


def read_file(path: str | PathLike[str]) -> tuple[str, list[Problem]]:
    """Return the text of a file, or why it has none; no more of it is read than a file may be large.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read(SIZE_MAX + 1)
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        if len(data) <= SIZE_MAX:
            return "", [("", f"is not UTF-8: byte {error.start}")]
        return data.decode("latin-1"), []  # too large by the same number of bytes, which is what will be said


def read_values(text: str, *, toml: bool) -> tuple[Any, list[Problem]]:
    """Return the values of a text and what is wrong with it. Never raises because of the text.

    Where the text cannot be read at all, the value is ``None`` and there is at least one problem.
    """
    problems: list[Problem] = []
    if len(text) > SIZE_MAX or len(text.encode("utf-8", "surrogatepass")) > SIZE_MAX:
        return None, [("", f"is larger than {SIZE_MAX:,} bytes")]
    try:
        values = _read_toml(text) if toml else _read_yaml(text, problems)
        return _plain(values, "", 0, problems), problems
    except _UnreadableError as error:
        problems.append(("", str(error)))
    except RecursionError:
        problems.append(("", _TOO_DEEP))
    return None, problems


class _UnreadableError(Exception):
    """The file cannot be read, and why."""


def _read_toml(text: str) -> Any:
    import tomllib

    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise _UnreadableError(f"is no TOML: {error}") from None


def _read_yaml(text: str, problems: list[Problem]) -> Any:
    import yaml

    try:
        loader = _yaml_loader()(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _weigh(node, "", 0, {}, problems) > VALUES_MAX:
                raise _UnreadableError(_TOO_MANY)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise _UnreadableError(f"is no YAML: {where}{said}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise _UnreadableError(f"is no YAML: {error}") from None


@functools.cache
def _yaml_loader() -> Any:
    """Make PyYAML's safe loader (the slow one, which survives deep nesting) with the scalars of YAML 1.2."""
    import yaml

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    tag = "tag:yaml.org,2002:"
    number = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
    for name, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?[0-9]+", list("-+0123456789")),
        ("float", rf"{number}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
        ("merge", r"<<", ["<"]),
    ):
        Loader.add_implicit_resolver(tag + name, re.compile(rf"^(?:{pattern})$"), first)
    # Why: the constructor of YAML 1.1 reads 010 as eight.
    Loader.add_constructor(tag + "int", lambda loader, node: int(loader.construct_scalar(node)))  # type: ignore[arg-type]
    return Loader


def _weigh(node: Any, path: str, depth: int, sizes: dict[int, int], problems: list[Problem]) -> int:
    """Return how many values a node unfolds to, and note keys that are no text or given twice.

    Each node is looked at once, however often aliases name it.
    """
    if id(node) in sizes:
        if not sizes[id(node)]:
            raise _UnreadableError(f"line {node.start_mark.line + 1}: an alias contains itself")
        return sizes[id(node)]
    if depth > DEPTH_MAX:
        raise _UnreadableError(_TOO_DEEP)
    sizes[id(node)], size = 0, 1
    if node.id == "sequence":
        for index, child in enumerate(node.value):
            size += _weigh(child, f"{path}[{index}]", depth + 1, sizes, problems)
    elif node.id == "mapping":
        lines: dict[str, int] = {}
        for key, child in node.value:
            line = key.start_mark.line + 1
            if key.id != "scalar":
                raise _UnreadableError(
                    f'line {line}: a key must be text; write references in quotes, as in "{{{{ steps.x }}}}"'
                )
            if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise _UnreadableError(
                    f'line {line}: a key must be text, not {key.value}; write it in quotes: "{key.value}"'
                )
            inner = join(path, key.value)
            if key.value in lines:
                problems.append((inner, f"given twice, in lines {lines[key.value]} and {line}; keep one"))
            lines[key.value] = line
            size += 1 + _weigh(child, inner, depth + 1, sizes, problems)
    sizes[id(node)] = size
    return size


def _plain(value: Any, path: str, depth: int, problems: list[Problem]) -> Any:
    if depth > DEPTH_MAX:
        raise _UnreadableError(_TOO_DEEP)
    if isinstance(value, dict):
        for key in value:
            _check_text(key, join(path, key), problems)
        return {key: _plain(each, join(path, key), depth + 1, problems) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each, f"{path}[{i}]", depth + 1, problems) for i, each in enumerate(value)]
    if isinstance(value, str):
        _check_text(value, path, problems)
    elif isinstance(value, float) and not math.isfinite(value):
        problems.append((path, f"must be a finite number, not {value}"))
    elif isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    elif value is not None and not isinstance(value, (int, float)):
        problems.append(
            (path, f"must be text, a number, true, false, null, a list or a mapping, not {value!r}")
        )
    return value


def _check_text(text: str, path: str, problems: list[Problem]) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        problems.append((ascii(path)[1:-1], "holds half a character (a surrogate); write the whole one"))


def join(path: str, key: str) -> str:
    """Return the path of a key below a path."""
    return f"{path}.{key}" if path else key
