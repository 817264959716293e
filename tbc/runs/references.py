r"""References in the inputs of steps: ``{{ steps.x }}``, ``{{ steps.x.field }}``, ``{{ item }}``.

A reference names the result of an earlier step, or the item that a ``for_each`` step is working on; further
names go into it: keys of mappings, positions in lists. They are looked up in plain values; nothing is called.
A text that is exactly one reference takes the value itself. Within a longer text, text goes in as it is and
everything else as JSON. A backslash in front, ``\{{``, makes two plain braces.

Examples
--------
>>> render({"prompt": "Sum up: {{ steps.read }}", "all": "{{ steps.read }}"}, {"read": ["a", "b"]})
{'prompt': 'Sum up: ["a", "b"]', 'all': ['a', 'b']}
>>> render("{{ item.title }} by {{ item.authors.0 }}", {}, {"title": "Tea", "authors": ["Kō"]})
'Tea by Kō'
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from attrs import frozen

from tbc.run_errors import UnresolvedReferenceError

__all__ = ["Reference", "fill", "find_references", "render", "whole_reference"]

_BRACES = re.compile(r"\\\{\{|\{\{(?P<inner>.*?)(?P<end>\}\}|\Z)", re.DOTALL)
_NAME = r"[A-Za-z0-9_-]+"
_INNER = re.compile(rf"\s*(?:steps\.(?P<step>{_NAME})|item)(?P<fields>(?:\.{_NAME})*)\s*")


@frozen
class Reference:
    """A reference, read."""

    #: The step whose result is meant; ``None``: the item.
    step: str | None
    #: What to look up in it, one after the other.
    fields: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ".".join((*(("item",) if self.step is None else ("steps", self.step)), *self.fields))


def find_references(value: object) -> Iterator[Reference | str]:
    """Yield the references of a value, in order; what should be one and is none comes as its text."""
    if isinstance(value, str):
        for match in _BRACES.finditer(value):
            if match["inner"] is not None:
                yield _read(match) or match[0]
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from find_references(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from find_references(each)


def render(value: object, results: Mapping[str, object], item: object = None) -> object:
    """Return an input with its references replaced.

    Parameters
    ----------
    value : object
        The input as the file has it.
    results : mapping of str to object
        The results of the steps that have run.
    item : object, optional
        The item of a ``for_each`` step.

    Raises
    ------
    UnresolvedReferenceError
        If a step has no result yet, or a result has no such field.
    """

    def look_up(reference: Reference) -> object:
        if reference.step is None:
            return _follow(reference, item)
        if reference.step not in results:
            raise UnresolvedReferenceError(str(reference), f"step {reference.step!r} has no result", results)
        return _follow(reference, results[reference.step])

    return fill(value, look_up)


def fill(value: object, look_up: Callable[[Reference], object]) -> object:
    """Return a value with every reference replaced by what `look_up` returns for it."""
    if isinstance(value, str):
        whole = _BRACES.match(value)
        if whole is not None and whole["inner"] is not None and whole.end() == len(value):
            return look_up(_known(whole))
        return _BRACES.sub(
            lambda match: "{{" if match["inner"] is None else _as_text(look_up(_known(match))), value
        )
    if isinstance(value, Mapping):
        return {key: fill(each, look_up) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [fill(each, look_up) for each in value]
    return value


def whole_reference(text: str) -> Reference | None:
    """Return the reference that a text consists of, if it consists of one."""
    match = _BRACES.match(text)
    alone = match is not None and match["inner"] is not None and match.end() == len(text)
    return _read(match) if match is not None and alone else None


def _read(match: re.Match[str]) -> Reference | None:
    inner = _INNER.fullmatch(match["inner"]) if match["end"] else None
    return None if inner is None else Reference(inner["step"], tuple(inner["fields"].split(".")[1:]))


def _known(match: re.Match[str]) -> Reference:
    reference = _read(match)
    if reference is None:
        raise UnresolvedReferenceError(match[0], "it is no reference", ())
    return reference


def _follow(reference: Reference, value: object) -> object:
    for field in reference.fields:
        try:
            if isinstance(value, Mapping):
                value = value[field]
            elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)) and field.isdecimal():
                value = value[int(field)]
            else:
                raise KeyError(field)
        except (LookupError, ValueError):
            known = value if isinstance(value, Mapping) else ()
            reason = f"there is no {field!r} in {type(value).__name__}"
            raise UnresolvedReferenceError(str(reference), reason, known) from None
    return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
