"""The wheel holds one top-level package, which works without the repository."""

import ast
import os
import pathlib
import subprocess
import sys
import textwrap
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
OURS = {
    "calib",
    "fileio",
    "encoders",
    "tasks",
    "runs",
    "runs.squad",
    "runs.glue",
    "modeling",
    "squad_evaluate",
}
QUANTIZE = """
    import sys
    import keras, numpy as np
    import tfquant

    x = keras.Input((6,))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Dense(5, "relu")(x)))
    batch = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
    quantized = tfquant.quantize(model, calibration=[batch], progress=False)
    assert 0 < np.abs(np.asarray(quantized(batch)) - np.asarray(model(batch))).max() < 0.1
    import tfquant.calib, tfquant.modeling, tfquant.runs.glue.pipeline, tfquant.tasks.squad
    print(tfquant.__file__, *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", folder, ROOT]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel) -> pathlib.Path:
    folder = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def test_the_only_top_level_package_is_tfquant(unpacked):
    names = {path.name for path in unpacked.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"tfquant"}
    assert (unpacked / "tfquant" / "py.typed").exists() and (
        unpacked / "tfquant" / "recipes" / "trt.yaml"
    ).exists()
    (metadata,) = unpacked.glob("*.dist-info")
    assert (metadata / "top_level.txt").read_text().split() == ["tfquant"]
    assert (metadata / "licenses" / "LICENSE").exists()


def test_no_module_imports_a_package_of_the_repository(unpacked):
    for path in unpacked.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not OURS & {name.partition(".")[0] for name in names}, path


def test_the_unpacked_wheel_quantizes_a_model(unpacked, tmp_path):
    environment = os.environ | {"PYTHONPATH": str(unpacked), "TF_CPP_MIN_LOG_LEVEL": "3"}
    found = run([sys.executable, "-P", "-c", textwrap.dedent(QUANTIZE)], tmp_path, environment)
    file, *modules = found.splitlines()[-1].split()
    assert pathlib.Path(file).is_relative_to(unpacked) and not OURS & set(modules)


def test_quantizing_needs_no_package_of_an_extra(unpacked, tmp_path):
    """As in an environment without extras, which the long test below builds for real."""
    extras = ("matplotlib", "sklearn", "tensorflow_datasets", "onnx", "onnxruntime", "tf2onnx")
    script = f"import sys; sys.modules |= dict.fromkeys({extras!r})\n" + textwrap.dedent(
        QUANTIZE
    ).replace(", tfquant.runs.glue.pipeline, tfquant.tasks.squad", "")
    environment = os.environ | {"PYTHONPATH": str(unpacked), "TF_CPP_MIN_LOG_LEVEL": "3"}
    run([sys.executable, "-P", "-c", script], tmp_path, environment)


@pytest.mark.parametrize("module", ["tfquant", "tfquant.run_squad", "tfquant.run_glue"])
def test_help_of_the_unpacked_wheel_does_not_import_tensorflow(module, unpacked, tmp_path):
    script = f"""
        import runpy, sys
        sys.argv = ["x", "--help"]
        try:
            runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            assert not ended.code and "tensorflow" not in sys.modules
    """
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    assert "--version" in run(
        [sys.executable, "-P", "-c", textwrap.dedent(script)], tmp_path, environment
    )


@pytest.mark.long
def test_the_wheel_works_in_a_fresh_environment(wheel, tmp_path):
    """With what the wheel requires and nothing else.

    No TensorFlow Datasets, scikit-learn, matplotlib.
    """
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = textwrap.dedent(QUANTIZE).replace(
        ", tfquant.runs.glue.pipeline, tfquant.tasks.squad", ""
    )
    found = run([python, "-c", script], tmp_path, environment)
    assert not {"matplotlib", "sklearn", "tensorflow_datasets"} & set(
        found.splitlines()[-1].split()
    )
    for command in ("tfquant", "tfquant-squad", "tfquant-glue"):
        assert (python.parent / command).exists()


def run(command, folder, environment) -> str:
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
