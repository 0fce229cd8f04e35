"""Presets and data that the tests of the examples share."""

import pytest

from tests.examples import presets


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """Folder with presets and data of all tests."""
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="session")
def gpt2_preset(hub):
    path = str(hub / "gpt2")
    presets.gpt2().save_to_preset(path)
    return path


@pytest.fixture(scope="session")
def texts(hub):
    """Files to score and to calibrate on."""
    return presets.save_text(hub, "test.txt", 8, 0), presets.save_text(hub, "valid.txt", 8, 1)


@pytest.fixture(scope="session")
def whisper_preset(hub):
    return presets.save_whisper(hub / "whisper")


@pytest.fixture(scope="session")
def recordings(hub):
    """Folders to transcribe and to calibrate on; the second holds WAV files."""
    pytest.importorskip("soundfile")
    return (
        presets.save_speech(hub / "test-clean", 3, 0),
        presets.save_speech(hub / "dev-clean", 2, 1, ".wav"),
    )
