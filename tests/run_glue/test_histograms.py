"""What --tb shows.

Histograms of the residual connections around feed-forward parts, in every architecture, and the
graph.
"""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from keras import ops
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import modeling
import run_glue
import tfquant
from encoders import layers
from runs.glue import command_line
from runs.glue.histograms import write_graph, write_histograms
from tasks.glue import synthetic
from tests.run_glue.tiny import TINY
from tfquant.intermediate_outputs import tap

SIZES = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
ALIKE = ("res_output_h", "res_output_x", "res_output_x_h")


def batch() -> dict[str, np.ndarray]:
    ids = np.random.default_rng(0).integers(4, 30, (3, 8)).astype(np.int32)
    return {
        "input_ids": ids,
        "input_mask": (np.arange(8) < [[8], [5], [2]]).astype(np.int32),
        "segment_ids": ids % 2,
    }


def shown(folder) -> EventAccumulator:
    found = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    found.Reload()
    return found


def histograms(folder) -> dict[str, np.ndarray]:
    """Tag -> [buckets, 3]: left, right, count."""
    found = shown(folder)
    return {
        tag: tf.make_ndarray(found.Tensors(tag)[0].tensor_proto) for tag in found.Tags()["tensors"]
    }


def test_histograms_are_those_of_the_layers_tensors_without_padding(tmp_path):
    model = modeling.build_classifier(modeling.BertConfig(num_hidden_layers=2, **SIZES), 2, seed=0)
    write_histograms(tap(model), batch(), str(tmp_path), 7, progress=False)
    found, given = histograms(tmp_path), batch()
    assert sorted(found) == [f"layer_{number:02d}/{name}" for number in (1, 2) for name in ALIKE]
    bert, real = model.get_layer("bert"), given["input_mask"] > 0
    mask = layers.attention_mask(given["input_mask"])
    state = bert.embeddings(given["input_ids"], given["segment_ids"])
    for number, layer in enumerate(bert.encoder.stack, start=1):
        x = layer.attention(state, mask)
        h = layer.projection.dense(layer.intermediate(x))
        for name, value in zip(ALIKE, (h, x, x + h), strict=True):
            buckets, value = found[f"layer_{number:02d}/{name}"], ops.convert_to_numpy(value)[real]
            assert buckets[:, 2].sum() == value.size == 15 * 16
            np.testing.assert_allclose(
                (buckets[0, 0], buckets[-1, 1]), (value.min(), value.max()), rtol=1e-5
            )
            edges = np.append(buckets[:, 0], buckets[-1, 1])
            assert (
                abs(np.histogram(value, edges)[0] - buckets[:, 2]).sum() <= 4
            )  # values on an edge go to either side
        state = layer.projection.layer_norm(h + x)
    assert [event.step for event in shown(tmp_path).Tensors("layer_01/res_output_x")] == [7]


@pytest.mark.representatives("config0-*", "config2-*")
@pytest.mark.parametrize(
    ("config", "names"),
    [
        (modeling.RobertaConfig(num_hidden_layers=1, **SIZES), ALIKE),
        (modeling.DistilBertConfig(num_hidden_layers=1, **SIZES), ALIKE),
        (
            modeling.MobileBertConfig(
                num_hidden_layers=1,
                **SIZES,
                embedding_size=6,
                intra_bottleneck_size=8,
                num_feedforward_networks=2,
            ),
            None,
        ),
    ],
)
def test_every_architecture_has_them(config, names, tmp_path):
    write_histograms(
        tap(modeling.build_classifier(config, 2, seed=0)), batch(), str(tmp_path), 0, progress=False
    )
    found = sorted(histograms(tmp_path))
    if names is None:  # two feed-forward networks, and the way back out of the bottleneck
        parts = {name.partition("/")[2].rpartition("_")[0].removesuffix("_x") for name in found}
        assert {"res_ffn1", "res_ffn2"} <= parts
        assert {f"layer_01/res_ffn2_{letter}" for letter in ("x", "h", "x_h")} <= set(found)
    else:
        assert found == [f"layer_01/{name}" for name in names]


def test_histograms_of_a_quantized_network_are_of_quantized_values_and_its_graph_has_quantizers(
    tmp_path,
):
    model = modeling.build_classifier(modeling.BertConfig(num_hidden_layers=1, **SIZES), 2, seed=0)
    recipe = tfquant.recipe("int8_outputs").with_spec(roles=["residual_sum"], format="int2")
    quantized = tfquant.quantize(model, recipe, [batch()], progress=False)
    write_histograms(tap(quantized), batch(), str(tmp_path), 0, progress=False)
    write_graph(tap(quantized), str(tmp_path))
    filled = histograms(tmp_path)["layer_01/res_output_x_h"][:, 2] > 0
    assert filled.sum() <= 4  # values of a 2-bit grid
    assert {"QuantizeAndDequantizeV4", "Softmax"} <= {
        node.op for node in shown(tmp_path).Graph().node
    }


def test_training_leaves_histograms_and_graph_beside_its_curves(tmp_path):
    data = synthetic.write_dataset(tmp_path / "data", train_rows=16, dev_rows=8)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(json.loads(open(data.config_file).read()) | TINY)
    )
    shutil.copy(data.vocab_file, tmp_path / "model" / "vocab.txt")
    words = (
        f"train-baseline --task rte --data-dir {data.data_dir} --model-path {tmp_path / 'model'}"
        f" --output-dir {tmp_path / 'run'} --max-seq-length 24 --max-steps 2 --batch-size 4 --tb"
        " --tb-graph --run-name tiny"
    )
    run_glue.run(command_line.parse(words.split(), ""))
    found = shown(tmp_path / "run" / "tb_logs" / "tiny")
    assert {f"layer_01/{name}" for name in ALIKE} | {"train/loss"} <= set(found.Tags()["tensors"])
    assert [event.step for event in found.Tensors("layer_01/res_output_x")] == [2]
    assert found.Tags()["graph"]
