"""Files of arrays that are damaged, hostile or too large end in one line before memory is
allocated.
"""

import io
import struct
import zipfile

import numpy as np
import pytest

from tfquant.cli import arrays

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def array_bytes(array=ROWS, header=None):
    """An array as NumPy stores it; with another header if one is given."""
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    if header is None:
        return file.getvalue()
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + array.tobytes()


def archive(path, content, method=zipfile.ZIP_STORED, name="x.npy"):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr(name, content)
    return path


def changed(path, at, value):
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(bytes(data))


def header(shape):
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}"


def encrypted(path):
    archive(path, array_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        changed(path, path.read_bytes().index(mark) + offset, b"\x01\x00")


def unknown_method(path):
    archive(path, array_bytes())
    for mark, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        changed(path, path.read_bytes().index(mark) + offset, struct.pack("<H", 99))


def damaged_stream(path):
    archive(
        path,
        array_bytes(np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)),
        zipfile.ZIP_DEFLATED,
    )
    changed(path, 60, b"\xff\xff\xff\xff\xff\xff")


def objects(path):
    np.savez(path, x=np.array([{}, []], object))


CASES = {
    "empty": (lambda path: path.write_bytes(b""), ""),
    "empty member": (lambda path: archive(path, b""), ""),
    "text": (lambda path: path.write_text("x,y\n1,2\n"), "not a zip file"),
    "cut off": (
        lambda path: (archive(path, array_bytes()), path.write_bytes(path.read_bytes()[:-30])),
        "not a zip file",
    ),
    "a single array": (lambda path: path.write_bytes(array_bytes()), "not a zip file"),
    "encrypted": (encrypted, "encrypted"),
    "unknown method": (unknown_method, "compression method"),
    "damaged stream": (damaged_stream, ""),
    "huge header": (
        lambda path: archive(path, array_bytes(header=header("(1000000000000,)"))),
        "says that it has the shape",
    ),
    "huge product": (
        lambda path: archive(path, array_bytes(header=header("(1000000, 1000000, 1000000)"))),
        "holds 48 bytes",
    ),
    "negative size": (
        lambda path: archive(path, array_bytes(header=header("(-4, -3)"))),
        "says that it has the shape",
    ),
    "syntax": (lambda path: archive(path, array_bytes(header="{'descr': (")), ""),
    "deep header": (lambda path: archive(path, array_bytes(header="(" * 3000)), ""),
    "objects": (objects, "not numbers or texts"),
    "another file": (
        lambda path: archive(path, b"text", name="readme.txt"),
        "'readme.txt' is no array",
    ),
    "no member": (
        lambda path: zipfile.ZipFile(path, "w").close(),
        "needs arrays with the same number of rows",
    ),
    "no rows": (
        lambda path: np.savez(path, x=ROWS[:0]),
        "needs arrays with the same number of rows",
    ),
    "a number": (
        lambda path: np.savez(path, x=np.float32(1)),
        "needs arrays with the same number of rows",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_file_of_arrays_is_one_line(tmp_path, case):
    make, said = CASES[case]
    path = tmp_path / "rows.npz"
    make(path)
    with pytest.raises(ValueError, match="rows.npz: ") as caught:
        arrays.read(str(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_arrays_beyond_memory_are_refused_before_they_are_read(tmp_path, monkeypatch):
    np.savez(tmp_path / "rows.npz", x=ROWS)
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    with pytest.raises(
        ValueError, match="rows.npz: .*its arrays need .* GiB, more than half of the memory"
    ):
        arrays.read(str(tmp_path / "rows.npz"))


def test_arrays_of_numbers_and_texts_are_read(tmp_path):
    words = np.array(["a", "b", "c", "d"])
    np.savez_compressed(
        tmp_path / "rows.npz",
        x=ROWS,
        turned=np.asfortranarray(ROWS),
        words=words,
        flags=ROWS[:, 0] > 3,
    )
    found = arrays.read(str(tmp_path / "rows.npz"))
    assert {name: array.dtype.kind for name, array in found.items()} == {
        "x": "f",
        "turned": "f",
        "words": "U",
        "flags": "b",
    }
    np.testing.assert_array_equal(found["turned"], ROWS)
