"""A checkpoint for FasterTransformer, read as that engine reads it.

From kernels in tiles and the list of a layer's ranges.
"""

import dataclasses
import functools
import math

import numpy as np
import pytest
import scipy.special
import tensorflow as tf

import modeling
import tfquant
from tests.few import few
from tests.graph import models
from tfquant import export
from tfquant.export import ExportError
from tfquant.export.fastertransformer import ampere_tiles, in_float_buffer, turing_tiles
from tfquant.runtimes import RuntimeFileError

WIDTH, INNER, HEADS, LAYERS = 64, 96, 2, 2
KERNELS = (
    "attention/self/query",
    "attention/self/key",
    "attention/self/value",
    "attention/output/dense",
    "intermediate/dense",
    "output/dense",
)
# Entry of the list, four numbers each, of what reaches a product.
PLACES = {
    "3.0": {
        "input": 0,
        "q": 1,
        "k": 2,
        "v": 3,
        "probabilities": 4,
        "context": 5,
        "attention": 6,
        "inner": 7,
        "next": 8,
    },
    "later": {
        "input": 0,
        "q": 2,
        "k": 4,
        "v": 6,
        "probabilities": 8,
        "context": 9,
        "attention": 11,
        "inner": 13,
        "next": 15,
    },
}
KERNELS_AT = {"3.0": 80, "later": 72}
RECIPES = {
    "int8_residual_float": "3.0",
    "int8_residual": "3.0",
    "ft1": "later",
    "ft2": "later",
    "ft3": "later",
}


def bert(**changes):
    sizes = {
        "vocab_size": 50,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
    }
    sizes |= {"intermediate_size": INNER, "max_position_embeddings": 32, "initializer_range": 0.2}
    return modeling.build_squad_model(modeling.BertConfig(**sizes | changes), seed=0)


@pytest.fixture(scope="module")
def batches():
    generator = np.random.default_rng(0)
    return [
        {
            "input_ids": generator.integers(1, 50, (4, 12)).astype(np.int32),
            "input_mask": np.ones((4, 12), np.int32),
            "segment_ids": np.zeros((4, 12), np.int32),
        }
        for _ in range(3)
    ]


@pytest.fixture(scope="module")
def quantized(batches):
    """Recipe -> a model that is not to be changed."""
    return functools.cache(
        lambda recipe: tfquant.quantize(bert(), recipe, calibration=batches, progress=False)
    )


def in_order_of_turing(codes):
    """Bytes of COL4_4R2_8C in cuBLASLt's words.

    8 rows by 32 columns, inner tiles of 4 columns in 4 even or odd rows.
    """
    inputs, outputs = codes.shape
    for first_input in range(0, inputs, 32):
        for first_output in range(0, outputs, 8):
            for odd in (0, 1):
                for four in range(0, 32, 4):
                    for row in range(odd, 8, 2):
                        yield from codes[
                            first_input + four : first_input + four + 4, first_output + row
                        ]


def in_order_of_ampere(codes):
    """Bytes of COL32_2R_4R4: in a tile of 32 rows and columns an element is at
    (((row%8)/2*4+row/8)*2+row%2)*32+column.
    """
    inputs, outputs = codes.shape
    found = np.empty(codes.size, np.int8)
    for column in range(inputs):
        for row in range(outputs):
            tile = (column // 32) * (outputs // 32) + row // 32
            r = row % 32
            found[tile * 1024 + ((r % 8 // 2 * 4 + r // 8) * 2 + r % 2) * 32 + column % 32] = codes[
                column, row
            ]
    return found


@pytest.mark.parametrize("shape", [(32, 32), (64, 96), (96, 64)])
@pytest.mark.parametrize(
    ("tiles", "in_order"), [(turing_tiles, in_order_of_turing), (ampere_tiles, in_order_of_ampere)]
)
def test_bytes_lie_in_the_order_of_the_engine_at_the_front_of_a_float_array(shape, tiles, in_order):
    codes = np.random.default_rng(0).integers(-127, 128, shape).astype(np.int8)
    buffer = in_float_buffer(codes, tiles)
    assert buffer.dtype == np.float32 and buffer.shape == shape
    held = np.frombuffer(buffer.tobytes(), np.int8)
    assert (
        np.array_equal(held[: codes.size], np.fromiter(in_order(codes), np.int8))
        and not held[codes.size :].any()
    )


class Engine:
    """What FasterTransformer computes, in NumPy, from a checkpoint alone."""

    def __init__(self, folder, version, tiles):
        self.reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
        self.version, self.tiles = version, tiles

    def get(self, name):
        return self.reader.get_tensor(name)

    def kernel(self, scope, number):
        stored = self.get(f"{scope}/{KERNELS[number]}/kernel")
        held = np.frombuffer(stored.tobytes(), np.int8)
        rows, columns = np.indices(stored.shape)
        codes = held[rows // 32 * 32 * stored.shape[1] + self.tiles(rows, columns)]
        start = KERNELS_AT[self.version] + WIDTH * min(number, 4) + (INNER if number == 5 else 0)
        return codes * (self.get(f"{scope}/amaxList")[start : start + stored.shape[1]] / 127)

    def rounded(self, scope, value, name):
        _, step, _, inverse = self.get(f"{scope}/amaxList")[4 * PLACES[self.version][name] :][:4]
        return np.clip(np.rint(value * inverse), -127, 127) * step

    def dense(self, scope, number, x):
        return x @ self.kernel(scope, number) + self.get(f"{scope}/{KERNELS[number]}/bias")

    def norm(self, scope, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * self.get(f"{scope}/LayerNorm/gamma") + self.get(f"{scope}/LayerNorm/beta")

    def layer(self, scope, x, residual_rounded):
        read = self.rounded(scope, x, "input")
        split = [
            self.dense(scope, n, read).reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
            for n in range(3)
        ]
        q, k, v = (
            self.rounded(scope, value, name) for value, name in zip(split, "qkv", strict=True)
        )
        p = scipy.special.softmax(q @ k.transpose(0, 1, 3, 2) / math.sqrt(WIDTH // HEADS), axis=-1)
        p = self.rounded(scope, p, "probabilities")
        context = self.rounded(scope, (p @ v).transpose(0, 2, 1, 3).reshape(x.shape), "context")
        x = self.norm(
            f"{scope}/attention/output",
            self.dense(scope, 3, context) + (read if residual_rounded else x),
        )
        read = self.rounded(scope, x, "attention")
        inner = self.dense(scope, 4, read)
        inner = self.rounded(scope, inner * scipy.special.ndtr(inner), "inner")
        return self.norm(
            f"{scope}/output", self.dense(scope, 5, inner) + (read if residual_rounded else x)
        )

    def __call__(self, batch, residual_rounded):
        tables = [
            self.get(f"bert/embeddings/{name}_embeddings")
            for name in ("word", "token_type", "position")
        ]
        x = (
            tables[0][batch["input_ids"]]
            + tables[1][batch["segment_ids"]]
            + tables[2][: batch["input_ids"].shape[1]]
        )
        x = self.norm("bert/embeddings", x)
        for number in range(LAYERS):
            x = self.layer(f"bert/encoder/layer_{number}", x, residual_rounded)
        if self.version == "3.0":
            x = self.rounded(f"bert/encoder/layer_{LAYERS - 1}", x, "next")
        return x @ self.get("cls/squad/output_weights").T + self.get("cls/squad/output_bias")


def scores(model, batch):
    answers = model(batch)
    return np.stack([answers["start_logits"], answers["end_logits"]], axis=-1)


@pytest.mark.representatives("ft1-86")
@pytest.mark.parametrize(
    ("recipe", "sm"),
    [
        ("int8_residual", 75),
        ("ft1", 86),
        *(
            pytest.param(recipe, 75, marks=pytest.mark.long)
            for recipe in ("int8_residual_float", "ft1")
        ),
    ],
)
def test_what_the_engine_computes_from_it_is_what_the_simulation_computes(
    tmp_path, batches, quantized, recipe, sm
):
    model = quantized(recipe)
    found = export(model, tmp_path / "ft", target="fastertransformer", sm=sm)
    assert sorted(path.name for path in (tmp_path / "ft").iterdir()) == [
        "checkpoint",
        "model.ckpt.data-00000-of-00001",
        "model.ckpt.index",
    ]
    assert "nothing here runs them" in str(found)
    engine = Engine(tmp_path / "ft", RECIPES[recipe], turing_tiles if sm == 75 else ampere_tiles)
    answers = engine(batches[0], residual_rounded=recipe == "int8_residual")
    simulated = scores(model, batches[0])
    rounding = np.abs(simulated - scores(bert(), batches[0])).mean()
    assert np.abs(answers - simulated).mean() < 0.05 * rounding


@pytest.mark.parametrize("recipe", few(RECIPES, ("int8_residual", "ft2")))
def test_the_list_of_a_layer_has_every_entry_in_its_place(tmp_path, quantized, recipe):
    model, version = quantized(recipe), RECIPES[recipe]
    export(model, tmp_path / "ft", target="fastertransformer", sm=75)
    ranges = {
        member: np.abs(model.ranges()[site.address][1])
        for site in model.plan.sites
        for member in site.members
    }
    scope = "bert/encoder/layer_0"
    reader = tf.train.load_checkpoint(str(tmp_path / "ft" / "model.ckpt"))
    got = reader.get_tensor(f"{scope}/amaxList")

    def amax(address):
        return np.max(ranges[f"{scope}/{address}"])

    def entry(value):
        return [value, value / 127, value / 127**2, 127 / value]

    def kernel(dense):
        return np.broadcast_to(
            ranges[f"{scope}/{dense}:weight:kernel"],
            reader.get_tensor(f"{scope}/{dense}/bias").shape,
        )

    assert got.shape == ((80 if version == "3.0" else 104) + 5 * WIDTH + INNER,)
    for name, address in {
        "input": "attention/self/query:linear_input:input",
        "q": "attention/self:matmul_input:q",
        "k": "attention/self:matmul_input:k",
        "v": "attention/self:matmul_input:v",
        "probabilities": "attention/self:matmul_input:probabilities",
        "context": "attention/output/dense:linear_input:input",
        "attention": "intermediate/dense:linear_input:input",
        "inner": "output/dense:linear_input:input",
        "next": "../layer_1/attention/self/query:linear_input:input",
    }.items():
        value = (
            np.max(ranges[f"bert/encoder/{address[3:]}"])
            if address.startswith("..")
            else amax(address)
        )
        np.testing.assert_allclose(
            got[4 * PLACES[version][name] :][:4], entry(value), rtol=1e-6, err_msg=name
        )
    kernels = np.concatenate([kernel(dense) for dense in KERNELS])
    np.testing.assert_array_equal(got[KERNELS_AT[version] :][: kernels.size], kernels)
    last = reader.get_tensor(f"bert/encoder/layer_{LAYERS - 1}/amaxList")[
        4 * PLACES[version]["next"]
    ]
    if version == "3.0":
        assert not got[36:80].any()
        assert last == max(
            np.max(ranges[site.address]) for site in model.plan.sites if site.role == "model_output"
        )
        return
    products = {
        1: KERNELS[0],
        3: KERNELS[1],
        5: KERNELS[2],
        10: KERNELS[3],
        12: KERNELS[4],
        14: KERNELS[5],
    }
    for place, dense in products.items():
        np.testing.assert_allclose(
            got[4 * place :][:4],
            entry(amax(f"{dense}:linear_output:output")),
            rtol=1e-6,
            err_msg=dense,
        )
    raw_scores, probabilities = (
        amax("attention/self:attention_scores:output"),
        amax("attention/self:matmul_input:probabilities"),
    )
    np.testing.assert_allclose(got[28:32], entry(raw_scores), rtol=1e-6)
    assert not got[64:72].any() and last == 1.0
    tail = got[72 + kernels.size :]
    operand = {port: amax(f"attention/self:matmul_input:{port}") for port in "qkv"}
    reads = {dense: amax(f"{dense}:linear_input:input") for dense in KERNELS}
    linear = [
        reads[dense] * kernel(dense)[0] / amax(f"{dense}:linear_output:output") for dense in KERNELS
    ]
    attention = [
        operand["q"] * operand["k"] / raw_scores,
        probabilities * operand["v"] / reads[KERNELS[3]],
    ]
    np.testing.assert_allclose(
        tail[:8], np.asarray(linear[:3] + attention + linear[3:]) / 127, rtol=1e-6
    )
    np.testing.assert_allclose(
        tail[8:11], [max(operand.values()), probabilities, reads[KERNELS[3]]], rtol=1e-6
    )
    assert tail.size == 32 and not tail[11:].any()


def test_what_is_not_of_the_encoder_is_as_it_was(tmp_path, quantized):
    export(quantized("ft2"), tmp_path / "ft", target="fastertransformer")
    reader = tf.train.load_checkpoint(str(tmp_path / "ft" / "model.ckpt"))
    names = set(reader.get_variable_to_shape_map())
    changed = {f"bert/encoder/layer_{n}/{dense}/kernel" for n in range(LAYERS) for dense in KERNELS}
    own = {
        variable.path: np.asarray(variable)
        for variable in bert().variables
        if variable.path in names
    }
    assert names - set(own) == {f"bert/encoder/layer_{n}/amaxList" for n in range(LAYERS)}
    assert {
        name for name in own if not np.array_equal(reader.get_tensor(name), own[name])
    } == changed


def refused(model, path, match, **options):
    with pytest.raises(ExportError, match=match):
        export(model, path, target="fastertransformer", **options)
    assert not path.exists() and not list(path.parent.iterdir())


def without(role):
    recipe = tfquant.recipe("int8_residual")
    return dataclasses.replace(
        recipe, rules=tuple(rule for rule in recipe.rules if rule.role != role)
    )


@pytest.mark.representatives("no operands")
@pytest.mark.parametrize(
    ("recipe", "match"),
    [
        (
            "int8_residual_asymmetric",
            (
                "key:linear_input:input: FasterTransformer has symmetric codes up to 127, this site"
                " has int8"
            ),
        ),
        (
            "int8_residual_both",
            "dense:residual_other:other: is quantized, while FasterTransformer leaves it in float",
        ),
        (
            without("matmul_input"),
            "wants a range of bert/encoder/layer_0/attention/self:matmul_input:q, which is no site",
        ),
        (
            tfquant.recipe("ft1").with_spec(roles=["weight"], format="int4"),
            "query:weight:kernel: .* up to 127, this site has int4",
        ),
    ],
    ids=["asymmetric", "too much", "no operands", "4 bits"],
)
def test_what_the_engine_cannot_compute_is_refused_by_the_name_of_the_site(
    tmp_path, batches, recipe, match
):
    refused(
        tfquant.quantize(bert(), recipe, calibration=batches, progress=False),
        tmp_path / "ft",
        match,
        sm=75,
    )


def test_ranges_that_have_to_be_one_and_differ_are_named(tmp_path, batches):
    model = tfquant.quantize(bert(), "ft1", calibration=batches, progress=False)
    address = "bert/encoder/layer_1/attention/self/key:linear_input:input"
    model.quantizers[address].set_range(np.float32(-1), np.float32(1))
    refused(
        model,
        tmp_path / "ft",
        "key:linear_input:input and .*query:linear_input:input: .* one range for both",
    )


def test_a_disabled_site_the_engine_quantizes_is_named(tmp_path, batches):
    recipe = tfquant.recipe("ft1")
    recipe = dataclasses.replace(
        recipe, disable=(*recipe.disable, "layer_0/intermediate/dense:linear_input:")
    )
    model = tfquant.quantize(bert(), recipe, calibration=batches, progress=False)
    refused(
        model, tmp_path / "ft", "layer_0/intermediate/dense:linear_input:input: is disabled, while"
    )


def test_other_refusals(tmp_path, batches, quantized):
    model = quantized("int8_residual")
    refused(
        model,
        tmp_path / "ft",
        "recipe 'int8_residual' has the sites of FasterTransformer 3.0, .*: pass sm=75",
    )
    refused(model, tmp_path / "ft", "of which mode 'float' has none", mode="float")
    with pytest.raises(
        ValueError,
        match="sm=70: must be an integer, for FasterTransformer's INT8 kernels at least 75",
    ):
        export(model, tmp_path / "ft", target="fastertransformer", sm=70)
    odd = tfquant.quantize(bert(intermediate_size=80), "ft1", calibration=batches, progress=False)
    refused(
        odd,
        tmp_path / "ft",
        r"layer_0/intermediate/dense/kernel: has shape \[64, 80\].*multiples of 32",
    )
    case = models.hub_bert()
    hub = tfquant.quantize(case.model, "int8_residual", calibration=case.batches, progress=False)
    refused(hub, tmp_path / "ft", "finds BERT's layers by their names", sm=75)


def test_no_runtime_answers_with_it_and_the_error_says_so(tmp_path, batches, quantized):
    export(quantized("ft1"), tmp_path / "ft", target="fastertransformer")
    with pytest.raises(
        RuntimeFileError, match="ft: holds a checkpoint, which no runtime here answers with"
    ):
        tfquant.compare(quantized("ft1"), tmp_path / "ft", batches)


def test_it_replaces_another_and_nothing_else(tmp_path, quantized):
    model, path = quantized("ft1"), tmp_path / "ft"
    for _ in range(2):
        export(model, path, target="fastertransformer")
    (path / "thesis.txt").write_text("the only copy")
    with pytest.raises(ValueError, match="ft: is there and is no FasterTransformer checkpoint"):
        export(model, path, target="fastertransformer")
    assert (path / "thesis.txt").exists()
