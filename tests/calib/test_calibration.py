"""The portable result: saved, loaded, merged, re-estimated, shown; and what damaged files get."""

import io
import json
import os
import resource
import zipfile

import numpy as np
import pytest

from calib import (
    Calibration,
    CalibrationError,
    CalibrationFileError,
    Grid,
    Histogram,
    Method,
    MissingHistogramError,
    SiteCalibration,
    Statistics,
    storage,
)

NARROW, ASYMMETRIC = Grid(-127, 127), Grid(-128, 127, symmetric=False)


def values(seed=0, size=2000):
    return np.random.default_rng(seed).standard_t(4, size=size).astype(np.float32)


def seen(data, signed=False):
    low, high = data.min(), data.max()
    return Statistics(low, high, data.size, 2, Histogram.of(data, signed=signed), low, high)


def calibration(seed=0, method="percentile", samples=8):
    weight = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    method = Method(method)
    activations = {
        "layer_0/input": SiteCalibration.estimate(seen(values(seed)), method, NARROW),
        "layer_0/output": SiteCalibration.estimate(
            seen(values(seed + 10), True), method, ASYMMETRIC
        ),
    }
    kernel = SiteCalibration.of_weight(weight, 1, Method("mse"), NARROW, address="layer_0/kernel")
    return Calibration(activations | {"layer_0/kernel": kernel}, samples=samples)


def test_a_saved_calibration_loads_bit_for_bit(tmp_path):
    path = tmp_path / "calibrators.npz"
    original = calibration()
    original.save(path)
    loaded = Calibration.load(path)
    assert loaded.equals(original) and list(loaded) == list(original) and loaded.samples == 8
    assert (
        loaded["layer_0/input"].method == Method("percentile")
        and loaded["layer_0/output"].grid == ASYMMETRIC
    )
    assert os.listdir(tmp_path) == ["calibrators.npz"]


def test_the_file_holds_no_pickle_and_names_what_it_is(tmp_path):
    path = tmp_path / "calibrators.npz"
    calibration().save(path)
    with np.load(path, allow_pickle=False) as archive:
        header = json.loads(archive["header"].tobytes())
        assert all(archive[name].dtype != object for name in archive.files)
    assert header["version"] == 1 and [site["address"] for site in header["sites"]] == list(
        calibration()
    )


def test_the_same_calibration_gives_the_same_bytes():
    assert calibration().to_bytes() == calibration().to_bytes() != calibration(seed=1).to_bytes()
    assert Calibration.from_bytes(calibration().to_bytes()).equals(calibration())


def test_a_calibration_is_a_read_only_mapping():
    result = calibration()
    assert len(result) == 3 and "layer_0/input" in result and "layer_1/input" not in result
    with pytest.raises(TypeError):
        result["layer_0/input"] = result["layer_0/output"]
    assert not result.equals(calibration(seed=1)) and not result.equals(calibration(samples=9))


def test_merging_two_halves_equals_calibrating_on_all():
    first, second = values(1), values(2)
    halves = [
        Calibration(
            {"a": SiteCalibration.estimate(seen(half), Method("percentile"), NARROW)}, samples=5
        )
        for half in (first, second)
    ]
    merged = halves[0].merge(halves[1])
    whole = seen(np.concatenate([first, second]))
    assert merged.samples == 10 and merged["a"].statistics.histogram.equals(whole.histogram)
    assert merged["a"].upper == Method("percentile").estimate(whole, NARROW)[1]


def test_merging_joins_sites_and_keeps_the_ranges_of_weights():
    ours = calibration()
    other = Calibration(
        {"layer_1/input": ours["layer_0/input"], "layer_0/kernel": ours["layer_0/kernel"]},
        samples=1,
    )
    merged = ours.merge(other)
    assert sorted(merged) == ["layer_0/input", "layer_0/kernel", "layer_0/output", "layer_1/input"]
    assert merged["layer_0/kernel"].equals(ours["layer_0/kernel"])


def test_merging_what_does_not_fit_names_the_site():
    ours = calibration()
    with pytest.raises(CalibrationError, match="layer_0/input: cannot merge method"):
        ours.merge(calibration(method="mse"))
    site = ours["layer_0/input"]
    with pytest.raises(CalibrationError, match="layer_0/input: cannot merge grid"):
        ours.merge(
            Calibration(
                {
                    "layer_0/input": SiteCalibration.estimate(
                        site.statistics, site.method, Grid(-7, 7)
                    )
                }
            )
        )
    bare = Statistics(0, 1, 3, 1)
    with pytest.raises(CalibrationError, match="layer_0/input: cannot merge"):
        ours.merge(Calibration({"layer_0/input": SiteCalibration(bare, site.method, NARROW, 0, 1)}))


def test_reestimating_equals_calibrating_with_that_method(tmp_path):
    calibration().save(tmp_path / "c.npz")
    loaded = Calibration.load(tmp_path / "c.npz")
    for method in ("mse", "entropy", "max", "moving_average"):
        again, fresh = loaded.reestimate(method), calibration(method=method)
        for address in ("layer_0/input", "layer_0/output"):
            assert again[address].equals(fresh[address])
    assert loaded.equals(calibration())


def test_reestimating_keeps_the_sites_that_do_not_match_or_hold_no_histogram():
    original = calibration()
    changed = original.reestimate(Method.parse("percentile", percentile=50), "*/input")
    assert changed["layer_0/input"].upper < original["layer_0/input"].upper
    assert changed["layer_0/output"] is original["layer_0/output"]
    assert original.reestimate("entropy")["layer_0/kernel"] is original["layer_0/kernel"]
    assert original.reestimate("max")["layer_0/kernel"].method == Method("max")


def test_reestimating_nothing_is_an_error():
    with pytest.raises(
        CalibrationError,
        match="no site matches 'pooler/.'; there are 3 sites, e.g. 'layer_0/input'",
    ):
        calibration().reestimate("max", "pooler/*")
    with pytest.raises(
        MissingHistogramError, match="'mse' needs a histogram and none of the 1 sites"
    ):
        calibration().reestimate("mse", "*/kernel")
    with pytest.raises(CalibrationError, match="the calibration is empty"):
        Calibration({}).reestimate("max")


# --- files
# --------------------------------------------------------------------------------------------------


def test_a_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no.npz: no such calibration file"):
        Calibration.load(tmp_path / "no.npz")
    with pytest.raises(FileNotFoundError, match="no such calibration file"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_called_damaged(tmp_path, cut):
    data = calibration().to_bytes()
    path = tmp_path / "c.npz"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(CalibrationFileError, match="c.npz: damaged or not a calibration file"):
        Calibration.load(path)


def test_flipped_bytes_are_an_error_or_leave_the_content_whole():
    data, original = calibration().to_bytes(), calibration()
    for place in range(0, len(data), 97):
        broken = bytearray(data)
        broken[place] ^= 0x5A
        try:
            assert Calibration.from_bytes(bytes(broken)).equals(
                original
            )  # a byte nobody reads, such as a date
        except CalibrationFileError as error:
            assert "\n" not in str(error)


def repacked(change):
    """The bytes of a calibration whose header or arrays were changed."""
    header, arrays = storage.unpack(calibration().to_bytes(), "test")
    change(header, arrays)
    stream = io.BytesIO()
    np.savez(stream, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **arrays)
    return stream.getvalue()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda header, arrays: header.update(version=99),
            "of version 99, this program reads version 1",
        ),
        (lambda header, arrays: header.update(kind="recipe"), "not a calibration file"),
        (lambda header, arrays: header.pop("version"), "damaged"),
        (lambda header, arrays: header["sites"][0].pop("grid"), "damaged"),
        (lambda header, arrays: header["sites"][0]["method"].update(name="kl"), "choose one of"),
        (
            lambda header, arrays: header["sites"][0]["histogram"].update(bin_width=0.3),
            "power of two",
        ),
        (lambda header, arrays: arrays.pop("0/lower"), "0/lower"),
        (
            lambda header, arrays: arrays.update({"0/lower": np.zeros(3, np.float32)}),
            "lower has shape",
        ),
        (lambda header, arrays: arrays.update({"0/counts": np.zeros(64, np.float32)}), "int64"),
        (lambda header, arrays: header.update(samples=-1), "samples"),
        (lambda header, arrays: header["sites"].append(header["sites"][0]), "damaged"),
    ],
)
def test_a_file_with_wrong_content_is_refused(tmp_path, change, message):
    path = tmp_path / "c.npz"
    path.write_bytes(repacked(change))
    with pytest.raises(CalibrationFileError, match=f"c.npz: .*{message}"):
        Calibration.load(path)


def test_other_archives_are_refused(tmp_path):
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "text.npz").write_text("calibration")
    np.save(tmp_path / "single.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", header=np.array([{"a": 1}], dtype=object))
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name in os.listdir(tmp_path):
        with pytest.raises(
            CalibrationFileError, match=f"{name}: damaged or not a calibration file"
        ):
            Calibration.load(tmp_path / name)


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "c.npz", tmp_path / "missing" / "c.npz"):
        with pytest.raises(CalibrationFileError, match="c.npz: cannot be written"):
            calibration().save(path)


def test_a_full_disk_leaves_the_old_file_and_no_temporary_one(tmp_path):
    path, original, other = tmp_path / "c.npz", calibration(), calibration(seed=1)
    original.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (100, hard)
    )  # Python ignores the signal, the write fails
    try:
        with pytest.raises(CalibrationFileError, match="c.npz: cannot be written .*has room"):
            other.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["c.npz"] and Calibration.load(path).equals(original)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch, step):
    path, original = tmp_path / "c.npz", calibration()
    original.save(path)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        calibration(seed=1).save(path)
    assert os.listdir(tmp_path) == ["c.npz"] and Calibration.load(path).equals(original)


# --- tables and pictures
# --------------------------------------------------------------------------------------------------


def test_the_table_has_a_line_for_every_site():
    table = calibration().table()
    assert "3 sites, 8 samples" in table
    line = next(line for line in table.splitlines() if "layer_0/output" in line)
    assert "percentile 99.99" in line and "-128..127" in line and "2,000" in line
    assert "x4" in next(line for line in table.splitlines() if "layer_0/kernel" in line)


def test_the_table_shows_the_share_that_is_cut():
    site = SiteCalibration.estimate(
        seen(values(size=50000)), Method.parse("percentile", percentile=90), NARROW
    )
    line = next(line for line in Calibration({"a": site}).table().splitlines() if "│ a " in line)
    share = float(line.split("│")[8])
    assert share == pytest.approx(10, abs=0.2)


def is_png(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_every_kind_of_site_can_be_drawn(tmp_path):
    paths = calibration().plot_all(tmp_path / "plots")
    assert len(paths) == 3 and all(
        is_png(tmp_path / "plots" / os.path.basename(path)) for path in paths
    )
    assert sorted(os.listdir(tmp_path / "plots")) == sorted(
        os.path.basename(path) for path in paths
    )


def test_the_picture_depends_on_the_range(tmp_path):
    calibration().plot("layer_0/input", tmp_path / "a.png")
    calibration().reestimate(Method.parse("percentile", percentile=50)).plot(
        "layer_0/input", tmp_path / "b.png"
    )
    assert (
        is_png(tmp_path / "a.png")
        and (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()
    )


def test_drawing_an_unknown_site_lists_what_there_is(tmp_path):
    with pytest.raises(CalibrationError, match="no site 'pooler'; there are 3 sites"):
        calibration().plot("pooler", tmp_path / "a.png")
    with pytest.raises(CalibrationError, match="a.png: cannot be written"):
        calibration().plot("layer_0/input", tmp_path / "missing" / "a.png")
    (tmp_path / "file").write_text("")
    with pytest.raises(CalibrationError, match="file: cannot be made"):
        calibration().plot_all(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]
