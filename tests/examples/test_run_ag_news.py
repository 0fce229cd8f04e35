"""run_ag_news.py on made texts: every method trains, resumes, and refuses bad inputs."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf

import modeling
import tfquant
from examples.ag_news import data, pipeline, pretrained
from examples.ag_news.checks import check
from examples.ag_news.classifier import Architecture, build, sinusoids
from examples.ag_news.encoders import build_on_encoder
from examples.ag_news.outputs import parts_of, sizes
from examples.ag_news.recipes import recipe
from examples.ag_news.settings import Settings
from examples.settings import parse
from runs.settings import FlagError
from tests.examples.presets import randomize
from tests.few import few
from tfquant import checkpoint

SMALL = {
    "blocks": 1,
    "width": 16,
    "heads": 2,
    "hidden": 32,
    "classifier": 32,
    "max_length": 24,
    "epochs": 2,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "log_every": 4,
}
MIXED = "mixed_bfloat16"
WORDS = (
    "minister election treaty",
    "goal match team",
    "shares profit bank",
    "software chip space",
)


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    """Folder with train.csv, test.csv and vocab.txt; the words of a text tell its class."""
    folder, rng = tmp_path_factory.mktemp("news"), np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 32)):
        with open(folder / f"{split}.csv", "w", newline="") as stream:
            writer = csv.writer(stream, quoting=csv.QUOTE_ALL)
            for number in range(count):
                words = WORDS[number % 4].split()
                text = " ".join(rng.choice(words, 6))
                writer.writerow([number % 4 + 1, "" if split == "train" else words[0], text])
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(WORDS).split()]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


@pytest.fixture(scope="module")
def bert(news, tmp_path_factory):
    """Folder of a BERT with random weights, of the width and vocabulary of the classifier."""
    folder = tmp_path_factory.mktemp("bert")
    config = {
        **{"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
        **{"intermediate_size": 32, "max_position_embeddings": 24, "type_vocab_size": 2},
        "model_type": "bert",
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = modeling.build_encoder(modeling.config_from_file(str(folder / "config.json")), seed=1)
    checkpoint.write(folder / "model.ckpt", {v.path: v for v in model.weights})
    return folder


@pytest.fixture(scope="module")
def bert_preset(tmp_path_factory):
    """Folder of a preset of KerasHub's BERT with random weights."""
    hub = pytest.importorskip("keras_hub")
    folder = str(tmp_path_factory.mktemp("hub") / "bert")
    backbone = hub.models.BertBackbone(
        vocabulary_size=17,
        num_layers=2,
        num_heads=2,
        hidden_dim=16,
        intermediate_dim=32,
        max_sequence_length=24,
    )
    randomize(backbone).save_to_preset(folder)
    return folder


def on_encoder(folder, output, kind, place, **changes):
    """Settings of a run on an encoder; sizes of the classifier's own one have their defaults."""
    small = {name: SMALL[name] for name in SMALL if name not in ("blocks", "width", "heads")}
    small.pop("hidden")
    paths = {"data_dir": str(folder), "vocab_file": str(folder / "vocab.txt")}
    return Settings(**{**small, **paths, "output_dir": str(output), kind: str(place), **changes})


@pytest.fixture(params=["encoder", "preset"])
def place(request):
    name = {"encoder": "bert", "preset": "bert_preset"}[request.param]
    return request.param, request.getfixturevalue(name)


def test_an_encoder_takes_the_place_of_the_blocks(news, tmp_path, place):
    settings = on_encoder(news, tmp_path, *place, **METHODS["ir"])
    check(settings)
    figures = pipeline.run(settings)
    attention, inner = 4 * (16 * 16 + 16), (16 * 32 + 32) + (32 * 16 + 16)
    assert figures["parameters"] == {
        "embeddings": (17 + 24 + 2) * 16,
        "MHA": 2 * attention,
        "FFN": 2 * inner,
        "CLS": (16 * 32 + 32) + (32 * 4 + 4),
        "LayerNorm": 5 * 2 * 16,
    }
    assert figures["quantized"] and len(figures["test_accuracy"]) == 2


PATTERN_KERNELS = {"MHA": 8, "MHA_QK": 6, "FFN": 4, "CLS": 1, "ALL": 13, "ALL_QK": 11}


def test_patterns_find_the_layers_of_an_encoder_by_structure(news, tmp_path, place):
    settings = on_encoder(news, tmp_path, *place)
    model = build_on_encoder(settings, 17, 4)
    binary = {"quant_type": "binarization", "quant_method": "basic"}
    for pattern, kernels in PATTERN_KERNELS.items():
        plan = tfquant.plan(
            model, recipe(dataclasses.replace(settings, **binary, quant_pattern=pattern))
        )
        assert len([site for site in plan.sites if site.is_weight]) == kernels, pattern


def test_the_weights_of_an_encoder_are_read(news, tmp_path, place):
    settings = on_encoder(news, tmp_path, *place)
    first, second = (
        build_on_encoder(dataclasses.replace(settings, seed=seed), 17, 4) for seed in (0, 1)
    )
    for one, other in zip(first.weights, second.weights, strict=True):
        new = one.path.startswith("classifier") and one.path.endswith("kernel")
        drawn = "seed_generator" in one.path or one.path.endswith("random")
        if not drawn:
            assert np.array_equal(one.numpy(), other.numpy()) != new, one.path
            assert one.numpy().any() or one.path.endswith(("bias", "beta"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16}, "--width has no effect with --encoder="),
        ({"mask_padding": False}, "--mask_padding has no effect with --encoder="),
        (
            {"pre_trained": True, "pretrained_checkpoint": "x"},
            "--pre_trained has no effect with --encoder=",
        ),
        ({"preset": "bert_tiny_en_uncased"}, "--encoder and --preset name two encoders"),
        ({"encoder": "/nowhere"}, "--encoder=/nowhere: holds no config.json"),
        ({"encoder": None, "preset": "/nowhere"}, "--preset=/nowhere: there is no such folder"),
    ],
)
def test_options_that_an_encoder_replaces_are_refused(news, bert, tmp_path, changes, message):
    with pytest.raises(FlagError) as error:
        check(on_encoder(news, tmp_path, "encoder", bert, **changes))
    assert message in str(error.value)


def test_an_encoder_that_is_too_small_is_refused(news, tmp_path, place):
    settings = on_encoder(news, tmp_path, *place)
    with pytest.raises(ValueError, match="has 17 token ids, --vocab_file=.* has 18"):
        build_on_encoder(settings, 18, 4)
    with pytest.raises(ValueError, match="has 24 positions: set --max_length=24 or less"):
        build_on_encoder(dataclasses.replace(settings, max_length=25), 17, 4)


def test_a_causal_preset_is_refused(news, tmp_path, gpt2_preset):
    settings = on_encoder(news, tmp_path, "preset", gpt2_preset)
    with pytest.raises(ValueError, match="first token of a GPT2Backbone reads nothing behind it"):
        build_on_encoder(settings, 17, 4)


def settings_of(folder, output, **changes):
    paths = {"data_dir": str(folder), "vocab_file": str(folder / "vocab.txt")}
    return Settings(**{**SMALL, **paths, "output_dir": str(output), **changes})


METHODS = {
    "float": {},
    "basic 8": {"quant_type": "quantization", "quant_method": "basic", "bit_num": 8},
    "basic 4": {"quant_type": "quantization", "quant_method": "basic", "bit_num": 4},
    "basic 2": {"quant_type": "quantization", "quant_method": "basic", "bit_num": 2},
    "fully 8": {"quant_type": "quantization", "quant_method": "fully", "bit_num": 8},
    "sign": {
        "quant_type": "binarization",
        "quant_method": "basic",
        "quant_pattern": "ALL",
        "scale": "none",
    },
    "all binary": {
        "quant_type": "binarization",
        "quant_method": "basic",
        "quant_pattern": "ALL",
        "skip_final": False,
    },
    "ir": {"quant_type": "binarization", "quant_method": "ir", "quant_pattern": "ALL_QK"},
}
KERNELS = {"sign": 7, "all binary": 8, "ir": 6}


@pytest.mark.parametrize("method", few(METHODS, kept=("basic 2", "fully 8", "all binary")))
def test_a_method_trains_and_writes_its_results(news, tmp_path, method):
    settings = settings_of(news, tmp_path, exp_name="one", **METHODS[method])
    check(settings)
    figures = pipeline.run(settings)
    assert len(figures["test_accuracy"]) == 2
    assert figures["best"] == max(figures["test_accuracy"])
    log = list(csv.reader((tmp_path / "one_log.csv").open()))
    assert log[0] == ["", "Epoch", "Iteration", "Train Loss", "Train Acc"]
    assert [row[1:3] for row in log[1:]] == [["0", "4"], ["1", "4"]]
    assert np.load(tmp_path / "one_test.npy").tolist() == pytest.approx(figures["test_accuracy"])
    written = json.loads((tmp_path / "one_results.json").read_text())
    assert written["figures"] == figures
    assert (tmp_path / "one_curves.png").stat().st_size > 1000
    if method == "float":
        assert figures["packed_bytes"] == figures["float_bytes"]
    else:
        assert figures["packed_bytes"] < figures["float_bytes"]
    best = np.load(tmp_path / "one_best.npz")
    assert best["block_0_attention_query/kernel"].shape == (16, 16)


@pytest.mark.long
def test_float_learns_the_made_classes(news, tmp_path):
    figures = pipeline.run(settings_of(news, tmp_path, epochs=6))
    assert figures["best"] == 100.0


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(news, tmp_path):
    method = {**METHODS["ir"], "latent": True, "epochs": 4}
    whole = pipeline.run(settings_of(news, tmp_path / "whole", **method))
    again = tmp_path / "again"
    shutil.copytree(
        tmp_path / "whole" / "tmp_checkpoints" / "float", again / "tmp_checkpoints/float"
    )
    resumed = pipeline.run(settings_of(news, again, **method))
    assert resumed["test_accuracy"] == whole["test_accuracy"]
    first = np.load(tmp_path / "whole" / "tmp_best.npz")
    second = np.load(again / "tmp_best.npz")
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("method", ["float", "fully 8"])
def test_bfloat16_trains_float32_weights(news, tmp_path, method):
    figures = pipeline.run(settings_of(news, tmp_path, amp=True, epochs=6, **METHODS[method]))
    assert figures["best"] == 100.0
    best = np.load(tmp_path / "tmp_best.npz")
    assert {best[name].dtype for name in best.files} == {np.dtype(np.float32)}


def test_bfloat16_computes_nearly_the_logits_of_float32():
    batch = {name: np.arange(1, 25, dtype=np.int32).reshape(2, 12) for name in data.INPUTS}
    batch["input_mask"][:] = np.arange(12) < 9
    logits = [np.array(build(small_architecture(), 0, dtype)(batch)) for dtype in (None, MIXED)]
    assert logits[1].dtype == "bfloat16"
    difference = np.abs(logits[0] - logits[1].astype(np.float32)).max()
    assert 0 < difference < 0.03 * np.ptp(logits[0])


def test_gradients_of_embeddings_hold_only_the_rows_that_occur():
    for dtype in (None, MIXED):
        model = build(small_architecture(), 0, dtype)
        ids = np.array([[5, 7, 5]], np.int32)
        with tf.GradientTape() as tape:
            logits = model({"input_ids": ids, "input_mask": np.ones_like(ids)})
        table = model.get_layer("embedding_tokens").embeddings.value
        gradient = tape.gradient(logits, table)
        assert isinstance(gradient, tf.IndexedSlices) and gradient.dtype == tf.float32
        assert sorted(gradient.indices.numpy()) == [5, 5, 7]


@pytest.mark.parametrize(("method", "kernels"), KERNELS.items())
def test_patterns_name_the_kernels_that_are_quantized(news, tmp_path, method, kernels):
    model = build(small_architecture())
    plan = tfquant.plan(model, recipe(settings_of(news, tmp_path, **METHODS[method])))
    weights = {site.path for site in plan.sites if site.is_weight}
    assert len(weights) == kernels
    assert ("classifier_output" in weights) == (method == "all binary")
    assert ("block_0_attention_value" in weights) == (method != "ir")


def small_architecture():
    return Architecture(64, blocks=1, width=16, heads=2, hidden=32, classifier=32, positions=24)


def test_the_classifier_has_the_parameters_of_the_source():
    model = build(Architecture(30522))
    counts, parts = {}, parts_of(model)
    for variable in model.trainable_variables:
        part = parts[variable.path]
        counts[part] = counts.get(part, 0) + int(np.prod(variable.shape))
    assert counts == {
        "embeddings": 15_889_408,
        "MHA": 2_101_248,
        "FFN": 2_100_224,
        "CLS": 529_412,
        "LayerNorm": 4_096,
    }


def test_padding_does_not_change_answers_unless_the_source_is_followed():
    ids = np.array([[2, 5, 6, 3]], np.int32)
    padded = np.array([[2, 5, 6, 3, 0, 0]], np.int32)
    for masks in (True, False):
        model = build(Architecture(16, 4, 1, 16, 2, 32, 32, 8, mask_padding=masks))
        short = model({"input_ids": ids, "input_mask": np.ones_like(ids)})
        long = model({"input_ids": padded, "input_mask": (padded > 0).astype(np.int32)})
        assert np.allclose(short, long, atol=1e-5) == masks


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(5, 6)
    for position in range(5):
        for pair in range(3):
            angle = position / 10000 ** (2 * pair / 6)
            assert table[position, 2 * pair] == pytest.approx(np.sin(angle), abs=1e-6)
            assert table[position, 2 * pair + 1] == pytest.approx(np.cos(angle), abs=1e-6)


def test_sizes_follow_the_count_of_the_source():
    model = build(Architecture(100, positions=32))
    figures = sizes(model, model, 32)
    assert figures["source_size"] == 2 * (2_101_248 + 2_100_224 + 529_412)


def test_names_in_a_checkpoint():
    assert pretrained.source_of("embedding_tokens/embeddings") == "bert/embeddings/word_embeddings"
    layer = "bert/encoder/layer_1/attention/"
    assert pretrained.source_of("block_1_attention_query/bias") == f"{layer}self/query/bias"
    assert pretrained.source_of("block_1_attention_norm/gamma") == f"{layer}output/LayerNorm/gamma"
    assert pretrained.source_of("block_1_ffn_inner/kernel") is None
    assert pretrained.source_of("classifier_hidden/kernel") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_dir": None}, "--data_dir is missing"),
        ({"data_dir": "/nowhere"}, "holds no train.csv"),
        ({"vocab_file": "/nowhere"}, "--vocab_file=/nowhere: there is no such file"),
        ({"bit_num": 8}, "--bit_num"),
        ({"quant_pattern": "ALL"}, "--quant_pattern"),
        ({"quant_type": "quantization", "bit_num": 8}, "--quant_method is missing"),
        (
            {"quant_type": "quantization", "quant_method": "ir", "bit_num": 8},
            "takes basic or fully",
        ),
        ({"quant_type": "quantization", "quant_method": "basic"}, "--bit_num is missing"),
        ({"quant_type": "binarization", "quant_method": "ir"}, "--quant_pattern is missing"),
        ({**METHODS["ir"], "bit_num": 8}, "--bit_num"),
        ({**METHODS["basic 8"], "latent": True, "latent_epochs": 2}, "leaves no epoch"),
        ({"latent": True}, "--latent"),
        ({"heads": 3}, "--heads=3: does not divide --width"),
        ({"pre_trained": True}, "set --pretrained_checkpoint"),
        ({"exp_name": "a/b"}, "must be a file name"),
        ({"epochs": 0}, "--epochs"),
    ],
)
def test_bad_options_are_refused_in_a_line(news, tmp_path, changes, message):
    with pytest.raises(FlagError) as error:
        check(settings_of(news, tmp_path, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "holds no rows"),
        ('"5","a","b"\n', "row 1 begins with '5'"),
        ('"1","a","b"\n"World","a","b"\n', "row 2 begins with 'World'"),
        ('"1","a","b"\n"2"\n', "has 1 columns"),
    ],
)
def test_rows_that_are_not_of_the_data_set_are_named(tmp_path, rows, message):
    path = tmp_path / "train.csv"
    path.write_text(rows)
    with pytest.raises(ValueError, match=r"train\.csv") as error:
        data.read_csv(str(path))
    assert message in str(error.value)


SOURCE_COMMANDS = {  # of the README of the source: arguments, kernels that are quantized
    "float": ("", 0),
    "fully": ("--quant_type quantization --quant_method fully --bit_num 8", 8),
    "ir": ("--quant_type binarization --quant_method ir --quant_pattern ALL_QK", 6),
    "pre-trained": (
        "--quant_type binarization --quant_method ir --quant_pattern ALL_QK --pre_trained",
        6,
    ),
    "latent": ("--quant_type binarization --quant_method ir --quant_pattern ALL_QK --latent", 6),
}


@pytest.mark.parametrize("command", few(SOURCE_COMMANDS, kept=("pre-trained",)))
def test_a_command_of_the_source_runs(news, bert, tmp_path, command):
    words, kernels = SOURCE_COMMANDS[command]
    small = {**SMALL, "data_dir": news, "vocab_file": news / "vocab.txt", "output_dir": tmp_path}
    if "--pre_trained" in words:
        small["pretrained_checkpoint"] = bert
    words = [*words.split(), *(f"--{name}={value}" for name, value in small.items())]
    settings = parse("run_ag_news.py", Settings, words, "")
    check(settings)
    figures = pipeline.run(settings)
    assert len(figures["test_accuracy"]) == 2 and figures["quantized"] == (kernels > 0)
    if kernels:
        last = checkpoint.latest(tmp_path / "tmp_checkpoints" / "quantized")
        network = tfquant.load(
            last, build(dataclasses.replace(small_architecture(), vocabulary=17))
        )
        assert sum(site.is_weight for site in network.plan.sites) == kernels


def test_a_dataset_of_tfds_is_read_as_the_files_are(news, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    rows = [
        {"title": "Goal", "description": "Team, match", "label": 1},
        {"title": "", "description": "Shares", "label": 2},
    ]
    prepare_for_tfds(tfds, tmp_path, rows)
    for split in ("train", "test"):
        found = data.read("tfds:ag_news_subset", split, str(tmp_path))
        assert found.texts == ["Goal Team, match", "Shares"] and found.labels.tolist() == [1, 2]
    settings = settings_of(news, tmp_path, data_dir="tfds:ag_news_subset", tfds_dir=str(tmp_path))
    check(settings)
    with pytest.raises(ValueError, match="validation"):
        data.read("tfds:ag_news_subset", "validation", str(tmp_path))


def prepare_for_tfds(tfds, folder, rows):
    """Write prepared data as TFDS itself would, without its network."""
    target = folder / "ag_news_subset" / "1.0.0"
    target.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="ag_news_subset", version="1.0.0", data_dir=str(target), module_name=__name__
    )
    features = {
        **{name: tfds.features.Text() for name in ("title", "description")},
        "label": tfds.features.ClassLabel(names=data.CLASSES),
    }
    info = tfds.core.DatasetInfo(builder=identity, features=tfds.features.FeaturesDict(features))
    writer = tfds.core.SequentialWriter(ds_info=info, max_examples_per_shard=100)
    splits = ["train", "test"]
    writer.initialize_splits(splits)
    writer.add_examples({split: rows for split in splits})
    writer.close_all()


def test_quoted_texts_may_have_commas_and_lines(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text('"3","Up, down","first\nsecond ""line"""\n')
    rows = data.read_csv(str(path))
    assert rows.texts == ['Up, down first\nsecond "line"'] and rows.labels.tolist() == [2]
