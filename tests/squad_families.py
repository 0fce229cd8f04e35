"""Tiny RoBERTa, DistilBERT and MobileBERT for run_squad.py on the generated data set."""

import json
import pathlib

from tokenizers import ByteLevelBPETokenizer

from tasks.squad import synthetic
from tasks.synthetic_vocab import all_texts
from tests.encoders import hugging_face

FAMILIES = ("roberta", "distilbert", "mobilebert")
POSITIONS = 100


def byte_level_vocabulary(folder: pathlib.Path, texts, size: int = 600) -> dict[str, int]:
    """Write vocab.json, merges.txt and tokenizer.json of a byte-level BPE; return the pieces."""
    tokenizer = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        texts, vocab_size=size, min_frequency=1, special_tokens=special, show_progress=False
    )
    tokenizer.save_model(str(folder))
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab()


def make_files(folder: pathlib.Path, family: str, **sizes) -> dict:
    """Write data, and a Hugging Face folder of a base model with random weights; return the flags
    of a run.
    """
    sizes = {"train_questions": 40, "dev_questions": 12} | sizes
    files = synthetic.write_dataset(folder, **sizes)
    vocab_file = pathlib.Path(files.vocab_file)
    rows = len(vocab_file.read_text().splitlines())
    if family == "roberta":
        vocab_file = folder / "vocab.json"
        rows = len(byte_level_vocabulary(folder, all_texts()))
    config = hugging_face.CONFIGS[family] | {
        "n_layers" if family == "distilbert" else "num_hidden_layers": 1,
        "vocab_size": rows,
        "max_position_embeddings": POSITIONS + 2 * (family == "roberta"),
    }
    weights = hugging_face.WEIGHTS[family](config)
    model = hugging_face.write(folder / "base", config, weights)
    return {
        "bert_config_file": str(model / "config.json"),
        "vocab_file": str(vocab_file),
        "init_checkpoint": str(model),
        "train_file": files.train_file,
        "predict_file": files.dev_file,
        "max_seq_length": 96,
        "max_query_length": 24,
        "learning_rate": 1e-3,
    }


def with_config(flags: dict, name: str, folder: pathlib.Path, **changes) -> dict:
    """Return flags with another configuration for the flag `name`."""
    config = json.loads(pathlib.Path(flags[name]).read_text()) | changes
    path = folder / f"{name}.json"
    path.write_text(json.dumps(config))
    return flags | {name: str(path)}
