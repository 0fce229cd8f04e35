"""A result file is there whole or not at all."""

import os
import stat

import pytest

from tasks import files


def test_new_file_gets_its_folder_and_the_usual_permissions(tmp_path):
    path = tmp_path / "a" / "b.json"
    files.write_json(path, {"ü": 1})
    assert path.read_text(encoding="utf-8") == '{\n    "\\u00fc": 1\n}\n'
    other = tmp_path / "other"
    other.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)


def test_failure_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    files.write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="cannot write .*result.json: No space left on device"):
        files.write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]


def test_value_that_is_no_json_touches_nothing(tmp_path):
    path = tmp_path / "result.json"
    files.write_text(path, "old")
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.json"]


def test_text_that_cannot_be_encoded_leaves_no_temporary_file(tmp_path):
    path = tmp_path / "result.txt"
    with pytest.raises(UnicodeEncodeError):
        files.write_text(path, "\ud800")
    assert os.listdir(tmp_path) == []
