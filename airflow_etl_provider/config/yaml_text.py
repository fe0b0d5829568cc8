"""YAML text read into plain values, with the line of every key and every mistake found at once."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from airflow_etl_provider.config.findings import Finding, KeyPath

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MERGE = "tag:yaml.org,2002:merge"
_MOST_NODES = 100_000
_MOST_LEVELS = 50
# A value that YAML takes for an alias, a reserved sign, a tag or a directive.
_BARE_SIGN = re.compile(r"^\s*(?:-\s+)?[^\s:#]+:\s+(?P<value>[*@%`&!|>].*?)\s*$")


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, as it is shown to people."""

    file: str
    line: int


@dataclass(slots=True)
class Document:
    """What a file says, where it says it, and what cannot be read."""

    file: str
    data: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    findings: list[tuple[Place, Finding]] = field(default_factory=list)


def read_yaml(text: str, file: str) -> Document:
    """Read one YAML document; what is wrong with it becomes findings, never an exception.

    Keys that stand twice, keys that are no text, unknown tags and impossible dates are found
    together; a syntax error is found alone, since nothing after it can be trusted.
    """
    document = Document(file)
    try:
        deep = _first_too_deep(text)
    except yaml.YAMLError as error:
        document.findings = [_syntax(error, text, file)]
        return document
    if deep is not None:
        finding = Finding(
            (), f"has more than {_MOST_LEVELS} levels", "write it with fewer brackets"
        )
        document.findings = [(Place(file, deep), finding)]
        return document
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is not None:
            document.data = _Reader(document, loader).value(root, (), ())
    except yaml.YAMLError as error:
        document.data = None
        document.findings = [_syntax(error, text, file)]
    finally:
        loader.dispose()
    return document


def _first_too_deep(text: str) -> int | None:
    """The line that opens too many levels: libyaml's composer overflows the stack on those."""
    level = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            level += 1
            if level > _MOST_LEVELS:
                return 1 if event.start_mark is None else event.start_mark.line + 1
        elif isinstance(event, yaml.CollectionEndEvent):
            level -= 1
    return None


class _Reader:
    """Walks the nodes of one document; keeps paths and lines as it goes."""

    def __init__(self, document: Document, loader: Any) -> None:
        self._document = document
        self._loader = loader
        self._nodes = 0

    def value(self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]) -> Any:
        self._nodes += 1
        self._document.places.setdefault(path, self._place(node))
        if node in above:
            return self._refuse(
                node, path, "holds itself", "write the value out instead of an alias"
            )
        if self._nodes > _MOST_NODES:
            return self._refuse(
                node, path, f"has more than {_MOST_NODES} values, aliases counted", "split the file"
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, (*above, node))
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, (*path, number), (*above, node))
                for number, item in enumerate(node.value)
            ]
        return self._scalar(node, path)

    def _mapping(
        self, node: yaml.MappingNode, path: KeyPath, above: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        inherited: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                inherited |= self._merged(value_node, path, above)
                continue
            key = self._key(key_node, path)
            if key is None:
                continue
            line = key_node.start_mark.line + 1
            if key in own:
                self._refuse(
                    key_node,
                    (*path, key),
                    f"stands twice; the first is in line {lines[key]}",
                    "keep one of the two",
                )
                continue
            lines[key] = line
            self._document.places[(*path, key)] = Place(self._document.file, line)
            own[key] = self.value(value_node, (*path, key), above)
        return inherited | own

    def _merged(
        self, node: yaml.Node, path: KeyPath, above: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        """What ``<<: *anchor`` or ``<<: [*a, *b]`` brings in; of several, the first wins."""
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for part in nodes:
            if isinstance(part, yaml.MappingNode) and part not in above:
                merged = self._mapping(part, path, (*above, part)) | merged
            else:
                self._refuse(
                    part, path, "'<<' takes a mapping", "write '<<: *name' of an anchored mapping"
                )
        return merged

    def _key(self, node: yaml.Node, path: KeyPath) -> str | None:
        if not isinstance(node, yaml.ScalarNode):
            self._refuse(
                node,
                path,
                "a list or mapping stands where a key is expected",
                "put the whole value in quotes if it begins with '{' or '['",
            )
            return None
        key = self._scalar(node, path)
        if isinstance(key, str):
            return key
        read_as = f", which YAML reads as {str(key).lower()}" if isinstance(key, bool) else ""
        what = f"the key {node.value!r} is no text{read_as}"
        self._refuse(node, path, what, "put the key in quotes")
        return None

    def _scalar(self, node: yaml.Node, path: KeyPath) -> Any:
        try:
            return self._loader.construct_object(node)
        except yaml.YAMLError:
            return self._refuse(
                node,
                path,
                f"the tag {node.tag!r} is not allowed",
                "write the plain value without '!'",
            )
        except ValueError as error:
            return self._refuse(
                node,
                path,
                f"{node.value!r} is no valid value ({error})",
                "correct it, or put a text in quotes",
            )

    def _place(self, node: yaml.Node) -> Place:
        return Place(self._document.file, node.start_mark.line + 1)

    def _refuse(self, node: yaml.Node, path: KeyPath, what: str, remedy: str) -> None:
        self._document.findings.append((self._place(node), Finding(path, what, remedy)))


def _syntax(error: yaml.YAMLError, text: str, file: str) -> tuple[Place, Finding]:
    mark = getattr(error, "problem_mark", None)
    number = 1 if mark is None else min(mark.line, max(len(text.splitlines()) - 1, 0)) + 1
    line = (text.splitlines() or [""])[number - 1]
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    what = what.removeprefix("but ")
    remedy = "correct the YAML in this line or the one above"
    if bare := _BARE_SIGN.match(line):
        value = bare["value"]
        what = f"a value that starts with {value[0]!r} has a meaning of its own in YAML ({what})"
        remedy = f'put it in quotes: "{value}"'
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        what, remedy = "the line is indented with a tab", "indent YAML with spaces"
    elif "found another document" in what:
        remedy = "write one pipeline per file, without '---' in between"
    return Place(file, number), Finding((), f"not readable as YAML: {what}", remedy)
