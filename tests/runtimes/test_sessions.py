"""Opened files.

What they take, what they answer, and what is wrong with those that cannot be opened.
"""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest

import tfquant
from tests.graph import models
from tfquant.latency import FEWEST, LONGEST_TURN, TURN, WARM_UP, Workload, measure
from tfquant.runtimes import Input, RuntimeFileError, open_file


@pytest.fixture(scope="module")
def case():
    return models.own_bert()


@pytest.fixture(scope="module")
def files(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    # 7-bit weights: with 8 bits OpenVINO's sums overflow on processors without VNNI.
    recipe = tfquant.recipe("cpu_onnxruntime").with_spec(roles=["weight"], format="int7")
    model = tfquant.quantize(case.model, recipe, calibration=case.batches, progress=False)
    for target, name in (
        ("onnx", "model.onnx"),
        ("openvino", "model.xml"),
        ("litert", "model.tflite"),
        ("saved_model", "served"),
    ):
        tfquant.export(model, folder / name, target=target)
    return folder


NAMES = ("model.onnx", "model.xml", "model.tflite", "served")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_says_what_it_takes(files, name):
    session = open_file(files / name)
    assert {entry.name: entry.dtype for entry in session.inputs} == dict.fromkeys(
        ("input_ids", "input_mask", "segment_ids"), np.dtype(np.int32)
    )
    assert all(entry.shape == (None, None) for entry in session.inputs)


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_taken_by_name_in_any_integer_type_and_others_passed_over(files, case, name):
    session, batch = open_file(files / name), case.batches[0]
    expected = session(batch)
    wider = {key: value.astype(np.int64) for key, value in reversed(batch.items())}
    again = session(wider | {"unique_ids": np.arange(3)})
    for output in expected:
        np.testing.assert_array_equal(again[output], expected[output])
    with pytest.raises(KeyError, match="input 'input_mask' is missing; the file takes input_ids"):
        session({"input_ids": batch["input_ids"]})


SIGNAL = """
import faulthandler, os, signal, sys
from tfquant.runtimes import open_file
faulthandler.enable()
got = []
signal.signal(signal.SIGUSR1, lambda *_: got.append(True))
one = open_file(sys.argv[1])
two = open_file(sys.argv[1])
del one
del two
os.kill(os.getpid(), signal.SIGUSR1)
print(got)
"""


def test_signals_arrive_after_openvino_has_gone(files):
    done = subprocess.run(
        [sys.executable, "-c", SIGNAL, str(files / "model.xml")],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "[True]\n"), done.stderr


def test_openvino_reads_onnx_files_as_well(files, case):
    one, other = (
        open_file(files / "model.onnx", "openvino")(case.batches[0]),
        open_file(files / "model.xml")(case.batches[0]),
    )
    for output in one:
        np.testing.assert_allclose(one[output], other[output], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "runtime", "message"),
    [
        ("model.onnx", None, "ONNX Runtime"),
        ("model.xml", None, "OpenVINO"),
        ("model.onnx", "openvino", "OpenVINO"),
    ],
)
def test_a_broken_file_is_named_in_one_line(tmp_path, name, runtime, message):
    (tmp_path / name).write_bytes(b"nonsense")
    with pytest.raises(RuntimeFileError, match=f"{name}: {message} cannot read it") as caught:
        open_file(tmp_path / name, runtime)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("nowhere.onnx", {}, FileNotFoundError, "there is no file .*nowhere.onnx"),
        (
            "model.txt",
            {},
            RuntimeFileError,
            "no runtime for files that end in '.txt'; known: .onnx: onnxruntime",
        ),
        (
            "model.onnx",
            {"runtime": "abacus"},
            ValueError,
            "runtime 'abacus': must be one of onnxruntime, openvino",
        ),
        ("model.onnx", {"threads": 0}, ValueError, "threads=0: must be at least 1"),
    ],
)
def test_what_cannot_be_opened_is_refused(tmp_path, name, options, kind, message):
    if not name.startswith("nowhere"):
        (tmp_path / name).touch()
    with pytest.raises(kind, match=message):
        open_file(tmp_path / name, **options)


# Latency.

INPUTS = (
    Input("ids", np.dtype(np.int32), (None, None)),
    Input("mask", np.dtype(np.int32), (None, None)),
)
ROWS = {
    "ids": np.arange(1, 33).reshape(4, 8),
    "mask": np.tril(np.ones((4, 8), int), 2),
}  # 3, 4, 5 and 6 long


def test_without_data_masks_are_ones_and_all_else_zeros():
    (feed,) = Workload.of(INPUTS, 2, 5).feeds
    np.testing.assert_array_equal(feed["ids"], np.zeros((2, 5)))
    np.testing.assert_array_equal(feed["mask"], np.ones((2, 5)))


@pytest.mark.parametrize(("length", "sizes"), [(4, [4, 4]), (10, [10, 10]), ("real", [4, 6])])
def test_rows_are_cut_off_or_padded_to_the_length(length, sizes):
    feeds = Workload.of(INPUTS, 2, length, ROWS).feeds
    assert [feed["ids"].shape for feed in feeds] == [(2, size) for size in sizes]
    kept = min(4, sizes[0])
    np.testing.assert_array_equal(feeds[0]["ids"][:, :kept], ROWS["ids"][:2, :kept])
    assert not feeds[1]["ids"][:, 8:].any()


@pytest.mark.parametrize(
    ("rows", "batch", "message"),
    [
        ({"ids": ROWS["ids"]}, 2, "the data has no input 'mask'"),
        (ROWS, 5, "the data has 4 rows, fewer than a batch of 5"),
    ],
)
def test_data_that_does_not_suffice_is_refused(rows, batch, message):
    with pytest.raises(ValueError, match=message):
        Workload.of(INPUTS, batch, 4, rows)


def test_files_are_called_in_turn_and_equally_often():
    calls = []

    class Recorded:
        inputs = INPUTS

        def __init__(self, name):
            self.name = name

        def __call__(self, feed):
            calls.append(self.name)

    found = measure(
        {"a": Recorded("a"), "b": Recorded("b")}, Workload.of(INPUTS, 2, 5), seconds=0.5
    )
    assert calls.count("a") == calls.count("b")
    turns = [(name, len(list(group))) for name, group in itertools.groupby(calls[2 * WARM_UP :])]
    assert [name for name, _ in turns[:4]] == ["a", "b"] * 2 and len(
        {count for _, count in turns}
    ) == 1
    assert TURN < turns[0][1] <= 1 + LONGEST_TURN
    assert (
        found["a"].calls >= FEWEST
        and found["a"].p50 <= found["a"].p95 <= found["a"].p99
        and found["b"].rows_per_second > 0
    )


def test_turns_are_as_long_as_the_slowest_file_wants_them():
    calls = []

    class Taking:
        inputs = INPUTS

        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def __call__(self, feed):
            calls.append(self.name)
            time.sleep(self.seconds)

    measure(
        {"slow": Taking("slow", 0.02), "fast": Taking("fast", 0.0)},
        Workload.of(INPUTS, 2, 5),
        seconds=0.01,
    )
    assert (
        next(len(list(group)) for _, group in itertools.groupby(calls[2 * WARM_UP :])) == 1 + TURN
    )


def test_calls_of_no_time_end_with_the_time_that_was_given():
    class Instant:
        inputs = INPUTS

        def __call__(self, feed):
            pass

    began = time.perf_counter()
    measure({"a": Instant(), "b": Instant()}, Workload.of(INPUTS, 2, 5), seconds=0.3)
    assert time.perf_counter() - began < 10.0
