"""Guarded reading of YAML: of a bounded depth and number of values, whatever aliases stand for."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import yaml

from fileio.errors import ContentError
from fileio.messages import printable
from fileio.reading import MAX_DEPTH, read_text

# Values that aliases of a YAML text may stand for beyond those that are written out: 384 bytes can
# stand for 10^9.
MAX_ALIASED = 10_000


def read_yaml(path: str | os.PathLike[str], *, resolve: bool = True) -> Any:
    """Value of a YAML file, see `parse_yaml`.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path), os.fspath(path), resolve=resolve)


def parse_yaml(text: str, source: str, *, resolve: bool = True) -> Any:
    """Value of a YAML text of plain values; keys of a mapping must differ.

    Args:
      text: YAML of one document.
      source: what the text is called in messages, such as the path of its file.
      resolve: whether `1e-5`, `no` and the like are numbers, truth values and so on; texts
        otherwise.

    Raises:
      ContentError: it is no YAML, nested deeper than `MAX_DEPTH`, or its aliases stand for more
        than `MAX_ALIASED` values.
    """
    try:
        loader = _Loader(text) if resolve else _TextLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ContentError(
            f"{printable(source)}: is nested deeper than {MAX_DEPTH} levels"
        ) from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ContentError(f"{printable(source)}: is no YAML ({printable(reason)})") from error


class _Loader(yaml.SafeLoader):
    """Stops at the first value that is nested too deeply.

    PyYAML's time grows with the square of the depth.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _TextLoader(_Loader):
    """Takes every value that has no tag as the text that is written."""

    yaml_implicit_resolvers: dict[str, Any] = {}


class _Size(NamedTuple):
    """Size of a YAML node.

    Values that it holds itself, values that it stands for with all aliases followed, and its depth.
    """

    own: int
    total: int
    depth: int


def _check_nodes(root: yaml.Node) -> None:
    """Raise RecursionError or ValueError if a YAML text stands for too much, or ValueError for a
    key that is there twice.
    """
    sizes: dict[int, _Size] = {}
    whole = _measure(root, sizes, set())
    if whole.total > sum(size.own for size in sizes.values()) + MAX_ALIASED:
        raise ValueError(f"its aliases stand for more than {MAX_ALIASED:,} values")
    if whole.depth > MAX_DEPTH:
        raise RecursionError


def _measure(node: yaml.Node, sizes: dict[int, _Size], above: set[int]) -> _Size:
    """Size of a node; `sizes` are those known, `above` the nodes that it lies in."""
    if id(node) in above:
        raise ValueError("an alias stands for what it is in")
    if id(node) in sizes:
        return sizes[id(node)]
    # Long texts count for more: what repeats them takes as much memory as many short ones.
    own = 1 + (len(node.value) // 64 if isinstance(node, yaml.ScalarNode) else 0)
    children: list[_Size] = []
    if isinstance(node, yaml.CollectionNode):
        above.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            children = [_measure(child, sizes, above) for pair in node.value for child in pair]
        else:
            children = [_measure(child, sizes, above) for child in node.value]
        above.remove(id(node))
    depth = 1 + max((child.depth for child in children), default=0)
    sizes[id(node)] = _Size(own, own + sum(child.total for child in children), depth)
    return sizes[id(node)]


def _check_keys(node: yaml.MappingNode) -> None:
    keys = [
        key.value
        for key, _ in node.value
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"
    ]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
