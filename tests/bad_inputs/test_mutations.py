"""Random changes of good files.

Each is read, or refused by an expected error in printable lines; nothing else ever happens.
"""

import copy
import json
import math
import random
import zlib

import pytest
from safetensors.numpy import save_file

import modeling
from runs.errors import EXPECTED, describe
from squad_evaluate import evaluate
from tasks import squad
from tasks.squad import synthetic
from tasks.tokenizer import load_tokenizer
from tests.encoders import stored_weights as weights

VALUES = [
    None,
    True,
    0,
    -1,
    1,
    10**12,
    10**40,
    math.inf,
    math.nan,
    1e308,
    -1.5,
    "",
    "x",
    "\x1b[31m\n",
    "\ud800",
    [],
    [1],
    [[[]]],
    {},
    {"a": 1},
    "2",
    [None],
    "a" * 10_000,
]
BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "hidden_act": "gelu",
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}
DISTILBERT = {
    "model_type": "distilbert",
    "dim": 8,
    "n_layers": 1,
    "n_heads": 2,
    "hidden_dim": 8,
    "vocab_size": 40,
    "dropout": 0.1,
}
MOBILEBERT = BERT | {
    "model_type": "mobilebert",
    "embedding_size": 4,
    "intra_bottleneck_size": 4,
    "normalization_type": "no_norm",
}
WORDPIECE = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": {"type": "BertNormalizer", "lowercase": True},
    "model": {
        "type": "WordPiece",
        "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "##b": 5},
    },
}
BYTE_LEVEL = {
    "version": "1.0",
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {
        "type": "BPE",
        "vocab": {"<pad>": 0, "<unk>": 1, "<s>": 2, "</s>": 3, "a": 4, "b": 5, "ab": 6},
        "merges": ["a b"],
    },
}
FEW, MANY = 40, 1500


def places(value, path=()):
    """Paths of all values inside a JSON value."""
    for key in (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    ):
        yield (*path, key)
        yield from places(value[key], (*path, key))


def mutated(value, rng):
    """A copy with one to three values replaced, removed or doubled."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(value))
        if not found:
            break
        *above, last = rng.choice(found)
        node = value
        for key in above:
            node = node[key]
        change = rng.random()
        if change < 0.6:
            node[last] = copy.deepcopy(rng.choice(VALUES))
        elif change < 0.8:
            del node[last]
        elif isinstance(node, dict):
            node[rng.choice(["", "\x1b[2J", "x"])] = node.pop(last)
        else:
            node.append(copy.deepcopy(node[last]))
    return value


def spoilt(content, rng):
    """Bytes with some changed, cut off, or more behind them."""
    kind = rng.random()
    if kind < 0.15:
        return content[: rng.randrange(len(content))]
    if kind < 0.25:
        return content + rng.randbytes(10)
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def read_or_refuse(read):
    """Whether it was read."""
    try:
        read()
    except EXPECTED as error:
        said = describe(error)
        assert said and all(c.isprintable() or c == "\n" for c in said)
        return False
    return True


def squad_file(folder, rng, tokenizer):
    version_2, training = rng.random() < 0.5, rng.random() < 0.5
    content = mutated(synthetic.make_dataset(6, version_2=rng.random() < 0.5), rng)
    (folder / "squad.json").write_text(json.dumps(content))

    def read():
        examples = squad.read_squad(folder / "squad.json", training=training, version_2=version_2)
        lengths = {"max_seq_length": 96, "max_query_length": 24}
        squad.convert(examples, tokenizer, training=training, progress=False, **lengths)

    read_or_refuse(lambda: evaluate(content, mutated({"q000000": "x", "q000001": "y"}, rng)))
    return read


def configuration(folder, rng, tokenizer):
    changed = mutated(
        rng.choice([BERT, BERT | {"model_type": "roberta"}, DISTILBERT, MOBILEBERT]), rng
    )
    (folder / "config.json").write_text(json.dumps(changed))
    return lambda: modeling.check_memory(modeling.config_from_file(folder))


def vocabulary(folder, rng, tokenizer):
    for path in folder.glob("*"):
        path.unlink()
    kind = rng.randrange(3)
    if kind == 2:
        (folder / "vocab.json").write_text(json.dumps(mutated(BYTE_LEVEL["model"]["vocab"], rng)))
        (folder / "merges.txt").write_bytes(spoilt(b"#version: 0.2\na b\n", rng))
    else:
        (folder / "tokenizer.json").write_text(
            json.dumps(mutated((WORDPIECE, BYTE_LEVEL)[kind], rng))
        )
        (folder / "tokenizer_config.json").write_text(
            json.dumps(mutated({"do_lower_case": True, "x": [1]}, rng))
        )

    def read():
        found = load_tokenizer(folder)
        assert found.num_ids > 0
        found.encode_sequences(["a b ab"], ["b"], 16)
        (pieces,) = found.encode(["a b ab"])
        assert pieces.ids.shape == pieces.starts.shape == pieces.ends.shape
        modeling.detect_lower_case(folder)

    return read


def lines(folder, rng, tokenizer):
    (folder / "vocab.txt").write_bytes(spoilt("\n".join(tokenizer.vocab).encode(), rng))
    return lambda: squad.Tokenizer(folder / "vocab.txt").encode_sequences(["a b"], ["b"], 16)


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "kind", [squad_file, configuration, vocabulary, lines], ids=lambda kind: kind.__name__
)
def test_changed_text_files_are_read_or_refused(kind, count, good_squad, tmp_path):
    tokenizer = squad.Tokenizer(good_squad / "vocab.txt")
    rng = random.Random(zlib.crc32(kind.__name__.encode()))
    read = [read_or_refuse(kind(tmp_path, rng, tokenizer)) for _ in range(count)]
    assert 0 < sum(read) < count  # neither is everything refused


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["index", "data", "safetensors", "header"])
def test_changed_weights_are_loaded_or_refused(kind, count, tmp_path):
    model = modeling.build_squad_model(weights.TINY)
    values = weights.values_for(model)
    rng = random.Random(count)
    prefix = weights.write_bundle(tmp_path / "model.ckpt", values)
    save_file(weights.hugging_face_weights(values), tmp_path / "model.safetensors")
    bundle = {
        "index": tmp_path / "model.ckpt.index",
        "data": tmp_path / "model.ckpt.data-00000-of-00001",
    }
    path = bundle.get(kind, tmp_path / "model.safetensors")
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    for _ in range(count):
        changed = spoilt(content, rng)
        if kind == "header":
            header = json.dumps(mutated(json.loads(content[8 : 8 + size]), rng)).encode()
            changed = len(header).to_bytes(8, "little") + header + content[8 + size :]
        path.write_bytes(changed)
        read_or_refuse(
            lambda: modeling.load_weights(
                model, prefix if kind in bundle else path, new_head=rng.random() < 0.5
            )
        )
