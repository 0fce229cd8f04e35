"""Guarded reading: regular files of a bounded size, JSON and YAML of a bounded depth and number of values.

Whatever a damaged or hostile file makes a parser do ends in one `ContentError` that names the file.
"""

from __future__ import annotations

import json
import os
import stat
from typing import Any, NamedTuple

import yaml

from fileio.errors import ContentError
from fileio.messages import printable

MAX_DEPTH = 100  # nested lists and mappings
MAX_SIZE = 1 << 30  # bytes of a text file
# Values that aliases of a YAML text may stand for beyond those that are written out: 384 bytes can stand for 10^9.
MAX_ALIASED = 10_000


def read_bytes(path: str | os.PathLike[str], limit: int = MAX_SIZE) -> bytes:
    """Content of a regular file.

    Args:
      path: of the file.
      limit: most bytes that such a file can have.

    Raises:
      FileNotFoundError: there is none.
      ContentError: it is a folder, a device or a pipe, or larger than `limit`.
      OSError: it cannot be read.
    """
    check_regular(path)
    # Without waiting: a pipe may have taken its place since.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        if os.fstat(file.fileno()).st_size > limit:
            raise ContentError(f"{printable(path)}: has more than {limit:,} bytes, which no such file has")
        return file.read()


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raises FileNotFoundError if there is no file, ContentError if it is a folder, a device or a pipe."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {printable(path)}") from None
    except ValueError as error:  # a null character
        raise FileNotFoundError(f"there is no file {printable(path)}") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise ContentError(f"{printable(path)}: is {kind}, not a file")


def read_text(path: str | os.PathLike[str], limit: int = MAX_SIZE) -> str:
    """Content of a file of UTF-8 text; a byte order mark in front is left out.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_bytes`; ContentError also if it is no UTF-8 text.
    """
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ContentError(f"{printable(path)}: is no UTF-8 text ({error.reason} at byte {error.start})") from error


def read_json(path: str | os.PathLike[str], *, unique_keys: bool = False) -> Any:
    """Value of a JSON file.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path), os.fspath(path), unique_keys=unique_keys)


def parse_json(text: str, source: str, *, unique_keys: bool = False) -> Any:
    """Value of a JSON text.

    Args:
      text: JSON.
      source: what the text is called in messages, such as the path of its file.
      unique_keys: a key that occurs twice in an object is an error; otherwise the last one counts.

    Raises:
      ContentError: it is no JSON, or nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique if unique_keys else None)
        _check_depth(value)
    except RecursionError:
        raise ContentError(f"{printable(source)}: is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ContentError(f"{printable(source)}: is no JSON ({printable(error)})") from error
    return value


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Value of a YAML file, see `parse_yaml`.

    Raises:
      FileNotFoundError, ContentError, OSError: as `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path), os.fspath(path))


def parse_yaml(text: str, source: str) -> Any:
    """Value of a YAML text of plain values; keys of a mapping must differ.

    Args:
      text: YAML of one document.
      source: what the text is called in messages, such as the path of its file.

    Raises:
      ContentError: it is no YAML, nested deeper than `MAX_DEPTH`, or its aliases stand for more than `MAX_ALIASED` values.
    """
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except RecursionError:
        raise ContentError(f"{printable(source)}: is nested deeper than {MAX_DEPTH} levels") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ContentError(f"{printable(source)}: is no YAML ({printable(reason)})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _check_depth(value: Any) -> None:
    """Raises RecursionError if lists and mappings are nested deeper than `MAX_DEPTH`."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for one in level
            if isinstance(one, (dict, list))
            for item in (one.values() if isinstance(one, dict) else one)
            if isinstance(item, (dict, list))
        ]
        if not level:
            return
    raise RecursionError


class _Loader(yaml.SafeLoader):
    """Stops at the first value that is nested too deeply: PyYAML's time grows with the square of the depth."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise RecursionError
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Size(NamedTuple):
    """Of a YAML node: values that it holds itself, values that it stands for with all aliases followed, and its depth."""

    own: int
    total: int
    depth: int


def _check_nodes(root: yaml.Node) -> None:
    """Raises RecursionError or ValueError if a YAML text stands for too much, or ValueError for a key that is there twice."""
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
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge"]
    if len(set(keys)) != len(keys):
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
