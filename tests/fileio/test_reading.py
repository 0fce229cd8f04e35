"""Whatever a file holds, reading it ends soon, in a value or in one line."""

import os
import zipfile

import numpy as np
import pytest

from fileio import arrays, reading, yaml_text
from fileio.errors import ContentError
from fileio.messages import printable

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)
LONG = f"a: &a '{'x' * 100_000}'\nb: [{', '.join(['*a'] * 1000)}]\n"
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{', '.join([f'*{chr(97 + i)}'] * 9)}]}}\n"
    for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "aliases stand for more than 10,000 values"),
        (LONG, "aliases stand for more than 10,000 values"),
        (MERGED, "aliases stand for more than 10,000 values"),
        ("a: &a [*a]", "an alias stands for what it is in"),
        ("a: &a {b: *a}", "an alias stands for what it is in"),
        ("[" * 50_000, "nested deeper than 100 levels"),
        ("{a: " * 500, "nested deeper than 100 levels"),
        ("[" * 150 + "]" * 150, "nested deeper than 100 levels"),
        ("a: 1\nb: 2\na: 3", "key 'a' is there twice"),
        ("!!python/object:os.system {}", "is no YAML"),
        ("{[1, 2]: 3}", "is no YAML"),
        ("a: 2024-13-45", "is no YAML"),
        ("a: \x1b[31m", "is no YAML"),
        ("a: 1\n---\nb: 2", "is no YAML"),
    ],
)
def test_hostile_yaml_is_one_line(text, message):
    with pytest.raises(ContentError, match=message) as caught:
        yaml_text.parse_yaml(text, "the file")
    assert (
        str(caught.value).startswith("the file: ")
        and str(caught.value).isprintable()
        and len(str(caught.value)) < 400
    )


def test_yaml_with_a_few_aliases_is_read():
    assert yaml_text.parse_yaml("a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]", "x") == {
        "a": {"x": 1},
        "b": {"x": 1, "y": 2},
        "c": [{"x": 1}, {"x": 1}],
    }
    assert yaml_text.parse_yaml("", "x") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested deeper than 100 levels"),
        ('{"a":' * 100_000, "nested deeper than 100 levels"),
        ("[" * 150 + "]" * 150, "nested deeper than 100 levels"),
        ("1" * 10_000, "not a JSON text"),
        ("", "not a JSON text"),
        ('{"a": 1, "a": 2}', "key 'a' is there twice"),
    ],
)
def test_hostile_json_is_one_line(text, message):
    with pytest.raises(ContentError, match=message) as caught:
        reading.parse_json(text, "the file", unique_keys=True)
    assert str(caught.value).startswith("the file: ") and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "kind", ["device", "pipe", "folder", "bytes", "large", "nowhere", "a\x1b[31m\nb"]
)
def test_what_is_no_text_file_is_one_line_and_never_waited_for(tmp_path, monkeypatch, kind):
    path = tmp_path / kind
    if kind == "device":
        path = "/dev/zero"
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    elif kind == "large":
        path.touch()
        os.truncate(path, 1 << 40)
    with pytest.raises((ContentError, FileNotFoundError)) as caught:
        reading.read_json(path)
    assert str(caught.value).isprintable() and printable(path) in str(caught.value)


def test_a_byte_order_mark_is_left_out(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbf{}")
    assert reading.read_json(tmp_path / "file") == {}


def npz(path, **changes):
    """A .npz file whose one array is described by another header."""
    np.savez(path, a=np.arange(6.0))
    with zipfile.ZipFile(path) as archive:
        content = archive.read("a.npy")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(changes.get("name", "a.npy"), changes["content"](content))


@pytest.mark.parametrize(
    "content",
    [
        lambda data: data.replace(b"(6,), ", b"(9999999999999,), ".ljust(6))[: len(data)],
        lambda data: data.replace(b"(6,)", b"(-6)"),
        lambda data: data.replace(b"(6,)", b"(60,"),
        lambda data: data[:80],
        lambda data: b"",
        lambda data: b"\x93NUMPY\x09\x00" + data[8:],
        lambda data: data[:10] + b"(" * 118 + data[128:],
        lambda data: data.replace(b"<f8", b"|O8"),
    ],
)
def test_a_damaged_array_is_one_line_without_memory_for_it(tmp_path, content):
    npz(tmp_path / "a.npz", content=content)
    with pytest.raises(ContentError, match="a.npz: is no .npz file of NumPy, or damaged"):
        arrays.read_arrays(tmp_path / "a.npz")


def test_other_files_and_pickles_in_an_archive_are_refused(tmp_path):
    npz(tmp_path / "a.npz", content=lambda data: data, name="code.py")
    with pytest.raises(ContentError, match="'code.py', which is no array"):
        arrays.read_arrays(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", a=np.array([{}], object))
    with pytest.raises(ContentError, match="type object"):
        arrays.read_arrays(tmp_path / "b.npz")


def test_every_flipped_byte_of_an_archive_is_one_error_or_no_difference(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", a=np.arange(30.0), b=np.array(["x", "yz"]))
    data = (tmp_path / "a.npz").read_bytes()
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 0xFF
        try:
            found = arrays.parse_arrays(bytes(flipped), "x")
        except ContentError:
            continue
        for name, expected in (("a", np.arange(30.0)), ("b", np.array(["x", "yz"]))):
            if name in found:
                np.testing.assert_array_equal(found[name], expected)


def test_printable_escapes_what_a_terminal_acts_on():
    assert (
        printable("a\x1b[31mb\nc\r\u202ed\udcff é 漢") == "a\\x1b[31mb\\nc\\r\\u202ed\\udcff é 漢"
    )
