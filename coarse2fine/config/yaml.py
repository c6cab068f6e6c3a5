"""YAML text as plain values that remember where they were written.

The library parses; what is here stands in for its loaders, which keep tags and raise at the first problem. Nothing is
ever built from a tag, so a file cannot run code (safety); problems are collected, so that one message can list them
all, each with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

__all__ = ["Keys", "Origin", "YamlTree", "dotted", "parse_yaml"]

Keys = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALARS = {_TAG + name for name in ("null", "bool", "int", "float", "str")}
_PLAIN_TAGS = _SCALARS | {_TAG + name for name in ("map", "seq", "timestamp", "merge")}
# Aliases let a short text stand for an endless tree; a configuration needs neither depth nor many values.
_MAX_DEPTH = 10
_MAX_NODES = 5_000
_MAX_TEXT = 50_000  # characters; the longest shipped file has 2,700, and a parser in Python takes 30 us for each


class Origin(NamedTuple):
    """Where a value was written: a sort key for messages, and the words for users."""

    rank: int
    text: str


@dataclass
class YamlTree:
    """Plain values, the origin of each, and the problems found while reading.

    Args:
        root: The values: nested dicts, lists and scalars; whatever had a problem is left out.
        origins: Where the value at each path of keys was written.
        problems: One line per problem, with the origin that it sorts by.
    """

    root: object = None
    origins: dict[Keys, Origin] = field(default_factory=dict)
    problems: list[tuple[Origin, str]] = field(default_factory=list)

    def report(self, origin: Origin, message: str) -> None:
        """Adds a problem."""
        self.problems.append((origin, f"{origin.text}: {message}"))

    def origin(self, keys: Keys) -> Origin:
        """Where the value at ``keys`` was written, or else the nearest section around it."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.origins:
                return self.origins[keys[:length]]
        return Origin(0, "configuration")


def parse_yaml(text: str, locate: Callable[[int], Origin], at: Keys = ()) -> YamlTree:
    """Reads YAML text.

    Args:
        text: One YAML document; an empty one gives None.
        locate: Gives the origin of a line, counted from 1.
        at: The path of keys that the text's own values lie under.

    Returns:
        The tree; syntax errors are among its problems.

    Example:
        >>> tree = parse_yaml("a: {b: [1, 2]}", lambda line: Origin(line, f"line {line}"))
        >>> tree.root, tree.origin(("a", "b")).text
        ({'a': {'b': [1, 2]}}, 'line 1')
    """
    tree = YamlTree()
    if len(text) > _MAX_TEXT:
        tree.report(locate(1), f"not a configuration: {len(text)} characters, more than {_MAX_TEXT}")
        return tree
    yaml = YAML(typ="safe", pure=True)
    try:
        node = yaml.compose(text)
        tree.origins[at] = locate(1 if node is None else node.start_mark.line + 1)
        tree.root = None if node is None else _Walk(tree, locate, yaml).plain(node, at)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        tree.report(locate(mark.line + 1 if mark else 1), f"not valid YAML: {error.problem or error.context}")
    except (YAMLError, RecursionError) as error:
        tree.report(locate(1), f"not valid YAML: {str(error).splitlines()[0]}")
    return tree


class _Walk:
    """Turns YAML nodes into plain values, and notes origins and problems in a tree."""

    def __init__(self, tree: YamlTree, locate: Callable[[int], Origin], yaml: YAML) -> None:
        self._tree = tree
        self._locate = locate
        self._yaml = yaml
        self._nodes = 0

    def plain(self, node: Node, keys: Keys) -> object:
        """The value of a node; None, with a problem reported, for what has no plain value."""
        origin = self._locate(node.start_mark.line + 1)
        self._tree.origins.setdefault(keys, origin)
        self._nodes += 1
        if len(keys) > _MAX_DEPTH or self._nodes > _MAX_NODES:
            raise YAMLError("nested too deeply, or too many values (each alias counts)")
        if str(node.tag) not in _PLAIN_TAGS:
            tag = str(node.tag).removeprefix(_TAG)
            self._tree.report(origin, f"{dotted(keys)}: tag '{tag}' refused, only plain values are read")
            return None
        if isinstance(node, MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, SequenceNode):
            return [self.plain(item, (*keys, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, ScalarNode):
            raise YAMLError(f"{dotted(keys)}: neither a value nor a list nor a section")
        return self._scalar(node, keys, origin)

    def _mapping(self, node: MappingNode, keys: Keys) -> dict[str, object]:
        """The values of a mapping; of a key that occurs twice, the first."""
        values: dict[str, object] = {}
        first_seen: dict[str, Origin] = {}
        for key_node, value_node in node.value:
            here = self._locate(key_node.start_mark.line + 1)
            if not isinstance(key_node, ScalarNode):
                self._tree.report(here, f"{dotted(keys)}: a key must be a word, not a list or a section")
                continue
            name = str(key_node.value)
            path = (*keys, name)
            if name in first_seen:
                self._tree.report(here, f"{dotted(path)}: duplicate key, first given at {first_seen[name].text}")
                continue
            first_seen[name] = self._tree.origins[path] = here
            problems = len(self._tree.problems)
            value = self.plain(value_node, path)
            # A value that was refused must not be judged a second time, as a wrong one.
            if len(self._tree.problems) == problems or isinstance(value, dict):
                values[name] = value
        return values

    def _scalar(self, node: ScalarNode, keys: Keys, origin: Origin) -> object:
        """The value of a scalar by YAML's rules for null, booleans and numbers; everything else is text."""
        if str(node.tag) not in _SCALARS:
            return str(node.value)
        try:
            value: object = self._yaml.constructor.construct_object(node)
        except (ValueError, YAMLError, LookupError):
            self._tree.report(origin, f"{dotted(keys)}: cannot read '{node.value[:40]}' as its tag says")
            return None
        if isinstance(value, int) and abs(value) >> 64:
            self._tree.report(origin, f"{dotted(keys)}: a number of {len(node.value)} digits is too large")
            return None
        return value


def dotted(keys: Keys) -> str:
    """The keys as users write them."""
    return ".".join(str(key) for key in keys) or "top level"
