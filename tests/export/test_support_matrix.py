"""The support matrix of README.md: what each target takes, and what it refuses by name.

`fastertransformer` takes one network only; tests/export/test_fastertransformer.py has its refusals.
"""

import functools
import pathlib
import re

import keras
import numpy as np
import pytest

import tfquant
from tfquant.export import ExportError
from tfquant.export.targets import TARGETS

README = pathlib.Path(__file__).parents[2] / "README.md"
INT8 = tfquant.recipe("int8_residual_float").with_method("max")


def _bits(*formats):
    return [INT8.with_spec(roles=["*"], format=name) for name in formats]


def _inputs(**changes):
    return INT8.with_spec(roles=["linear_input"], **changes)


# First code of a row -> recipes of its kind, the last of which stands for all in `make test`.
KINDS = {
    "int8": [INT8],
    "int5": _bits("int5", "int7", "int6"),
    "int2": _bits("int2", "int3", "int4"),
    "int9": _bits("int9", "int12", "int16"),
    "e4m3": _bits("e5m2", "e4m3"),
    "e3m2": [
        INT8.with_spec(roles=["weight"], format="ternary").with_spec(
            roles=["linear_input"], format="binary", update="elastic"
        ),
        *_bits("e3m2", "e2m1", "nf4", "p2_5", "posit8_1"),
    ],
    "binary": [
        INT8.with_spec(roles=["weight"], format=name, granularity="per_channel")
        for name in ("binary", "ternary")
    ],
    "int4": [
        INT8.with_spec(
            roles=["weight"], format=name, granularity="per_block", block_size=16, dynamic=True
        )
        for name in ("int8", "int4")
    ],
    "symmetric: false": [_inputs(symmetric=False)],
    "per_embedding_group": [
        _inputs(granularity="per_embedding"),
        _inputs(granularity="per_embedding_group", groups=4),
    ],
    "mxfp8": [
        INT8.with_spec(roles=["*"], format=name, granularity="per_block", block_size=4)
        for name in ("mxfp4", "mxfp8")
    ],
    "dynamic: true": [_inputs(dynamic=True, granularity="per_token"), _inputs(dynamic=True)],
}
# Cell -> opsets that take it, opsets that refuse it.
OPSETS = {
    "yes": ((17, 21), ()),
    "no": ((), (17, 21)),
    "opset < 21": ((17,), (21,)),
    "opset >= 19": ((19, 21), (17,)),
    "opset >= 21": ((21,), (17,)),
}


def _table() -> tuple[list[str], dict[str, list[str]]]:
    """Targets of the columns, and the cells of each row by its first code."""
    section = README.read_text().partition("| format or option |")[2].partition("\n\n")[0]
    head, _, *rows = section.splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    columns = re.findall(r"`(\w+)`", head)
    return columns, {re.search("`([^`]+)`", row[0])[1]: row[1:] for row in cells}


def _cases():
    columns, rows = _table()
    for kind, recipes in KINDS.items():
        for column, cell in zip(columns, rows[kind], strict=True):
            if column == "fastertransformer":
                continue
            for recipe in recipes:
                marks = [] if recipe is recipes[-1] else [pytest.mark.long]
                spec = next(rule.spec for rule in recipe.rules if rule.role == "linear_input")
                name = f"{column} {spec.describe()}"
                yield pytest.param(column, recipe, cell, marks=marks, id=name)


@pytest.fixture(scope="module")
def networks():
    """Recipe -> the network with it, shared by all targets."""
    keras.utils.set_random_seed(0)
    x = keras.Input((16,), name="x")
    y = keras.layers.Dense(32, activation="relu", name="up")(x)
    batches = [np.random.default_rng(0).normal(size=(64, 16)).astype(np.float32)]
    model = keras.Model(x, keras.layers.Dense(3, name="down")(y))

    @functools.cache
    def quantized(recipe: tfquant.Recipe):
        return tfquant.quantize(model, recipe, calibration=batches, progress=False)

    return quantized, batches


def test_the_matrix_names_every_target_and_kind():
    columns, rows = _table()
    assert sorted(columns) == sorted(TARGETS) and sorted(rows) == sorted(KINDS)


# int4 stands for 5 to 7 bits, e4m3 for formats that are stored as codes.
@pytest.mark.filterwarnings("ignore:.*quantized products in integers")
@pytest.mark.representatives(
    "* int8 *", "* int4 *", "* int16 *", "* e4m3 *", "saved_model posit8_1 *", "onnx posit8_1 *"
)
@pytest.mark.parametrize(("target", "recipe", "cell"), list(_cases()))
def test_a_target_takes_or_refuses_what_the_matrix_says(target, recipe, cell, networks, tmp_path):
    quantized, batches = networks[0](recipe), networks[1]
    taken, refused = OPSETS[cell]
    path = tmp_path / f"model{TARGETS[target].suffix}"
    needs_opset = bool(TARGETS[target].packages)
    for opset in refused if needs_opset else refused[:1]:
        with pytest.raises(ExportError, match=r"site|place"):
            tfquant.export(quantized, path, target=target, opset=opset)
        assert not path.exists()
    for opset in taken if needs_opset else taken[:1]:
        tfquant.export(quantized, path, target=target, opset=opset, check_data=batches)
