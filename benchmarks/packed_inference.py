"""Latency and size of encoders with packed weights of 4, 2 and 1 bits in ONNX Runtime, beside float
and int8.

    python -m benchmarks.packed_inference
    python -m benchmarks.packed_inference --shared=../shared     with F1 of the MiniLM on SQuAD

Files take turns in one run (`tfquant.latency`); the medians of their calls are compared. Encoders
have random weights, on which latency does not depend, and the MiniLM those of `--shared` if given.
A row of results/packed_inference.json is the sizes of a model, one shape of it, or the scores of
one file; rows that are there are not measured again without --fresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np

import modeling
import tfquant
from benchmarks.packed_inference_report import table
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, DevSet, Squad
from tfquant import QuantSpec, Recipe, Rule
from tfquant.export.targets import TARGETS, size_of
from tfquant.latency import Workload, measure
from tfquant.runtimes import Session, onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[1]
NAME, SEED = "packed_inference", 12345
CONFIGS = {
    "MiniLM": modeling.BertConfig(
        30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    ),
    "BERT-base": modeling.BertConfig(
        30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    ),
    "tiny": modeling.BertConfig(
        100, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96
    ),
}
DEFAULT_MODELS = ("MiniLM", "BERT-base")


@dataclasses.dataclass(frozen=True)
class File:
    """A way to write an encoder.

    Attributes:
      recipe: size of a head -> recipe; None for the float network.
      target: of `tfquant.export`.
      scored: whether rounding alone leaves a model worth scoring.
    """

    recipe: Callable[[int], str | Recipe] | None
    target: str = "matmul_nbits"
    scored: bool = False


def packed(weight: QuantSpec, block: int | None = None) -> Callable[[int], Recipe]:
    """Recipes with packed weights and tables of 8 bits.

    Args:
      weight: of kernels.
      block: number of linear inputs that share a scale of int8, at most the size of a head behind
        attention, whose heads are rounded apart; None for inputs in float.
    """

    def recipe(head: int) -> Recipe:
        rules = [Rule(weight, role="weight"), Rule(QuantSpec("int8"), role="embedding")]
        if block is not None:
            rules.append(Rule(in_blocks("int8", block), role="linear_input"))
            merged = in_blocks("int8", min(block, head))
            rules.append(Rule(merged, role="linear_input", part="attention_output"))
        return Recipe(tuple(rules), name="packed")

    return recipe


def in_blocks(format: str, size: int) -> QuantSpec:
    return QuantSpec(format, "per_block", block_size=size, dynamic=True)


def named(name: str) -> Callable[[int], str]:
    return lambda head: name


TERNARY, BINARY = QuantSpec("ternary", "per_channel"), QuantSpec("binary", "per_channel")
# The first one is what all others are compared with.
FILES = {
    "float32": File(None, "onnxruntime", scored=True),
    "int8, cpu_onnxruntime": File(named("cpu_onnxruntime"), "onnxruntime", scored=True),
    "int8, cpu_onnxruntime_embeddings": File(
        named("cpu_onnxruntime_embeddings"), "onnxruntime", scored=True
    ),
    "int4 blocks of 32, float inputs": File(packed(in_blocks("int4", 32)), scored=True),
    "int4 blocks of 32, int8 inputs": File(packed(in_blocks("int4", 32), 32), scored=True),
    "int4 blocks of 128, float inputs": File(packed(in_blocks("int4", 128)), scored=True),
    "int4 blocks of 128, int8 inputs": File(packed(in_blocks("int4", 128), 128), scored=True),
    "int2 blocks of 64, float inputs": File(packed(in_blocks("int2", 64))),
    "int2 blocks of 64, int8 inputs": File(packed(in_blocks("int2", 64), 64)),
    "ternary, float inputs": File(packed(TERNARY)),
    "ternary, int8 inputs": File(packed(TERNARY, 128)),
    "binary, float inputs": File(packed(BINARY)),
    "binary, int8 inputs": File(packed(BINARY, 128)),
}


class Encoder:
    """A model and its files, written when they are first asked for.

    Args:
      name: key of `CONFIGS`.
      folder: where files go.
      squad: has the weights of the MiniLM and windows for calibration; random ones without it.
    """

    def __init__(self, name: str, folder: pathlib.Path, squad: Squad | None = None):
        self._config, self._folder = CONFIGS[name], folder / name
        self._squad = squad if name == "MiniLM" else None
        self._folder.mkdir(parents=True, exist_ok=True)

    @functools.cached_property
    def model(self) -> keras.Model:
        if self._squad is not None:
            return self._squad.model()
        keras.utils.set_random_seed(SEED)
        return modeling.build_squad_model(self._config, dropout=False)

    @functools.cached_property
    def calibration(self) -> list[dict[str, np.ndarray]]:
        if self._squad is not None:
            return self._squad.calibration_batches(seed=SEED)
        ids = np.random.default_rng(SEED).integers(1, self._config.vocab_size, (4, 64))
        ids = ids.astype(np.int32)
        return [dict(zip(INPUTS, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))]

    def path(self, file: str) -> pathlib.Path:
        """The exported file; one of an earlier run is taken as it is."""
        way = FILES[file]
        path = self._folder / f"{file.replace(', ', '_').replace(' ', '_')}.onnx"
        if path.exists():
            return path
        if way.recipe is None:
            tfquant.export(tfquant.quantize(self.model), path, target=way.target, mode="float")
            return path
        head = self._config.hidden_size // self._config.num_attention_heads
        model = tfquant.quantize(
            self.model, way.recipe(head), calibration=self.calibration, progress=False
        )
        tfquant.export(model, path, target=way.target)
        return path

    def open(self, file: str, threads: int) -> Session:
        return onnxruntime.open_file(str(self.path(file)), threads=threads)


def sizes(encoder: Encoder, files: list[str]) -> dict:
    """Bytes of every file."""
    return {"bytes": {file: size_of(encoder.path(file)) for file in files}}


def timed(
    encoder: Encoder, files: list[str], length: int, threads: int, seconds: float
) -> dict[str, object]:
    """p50 in milliseconds of a call of one row, and how many times as fast as the first file it
    is.
    """
    sessions = {file: encoder.open(file, threads) for file in files}
    workload = Workload.of(next(iter(sessions.values())).inputs, 1, length)
    found = measure(sessions, workload, seconds)
    first = found[files[0]].p50
    return {
        "p50": {file: round(one.p50, 3) for file, one in found.items()},
        "speed": {file: round(first / one.p50, 3) for file, one in found.items()},
        "calls": {file: one.calls for file, one in found.items()},
        "threads": threads,
    }


def scored(encoder: Encoder, file: str, dev: DevSet, threads: int) -> dict:
    """`exact_match` and `f1` of a file."""
    session = encoder.open(file, threads)
    return dev.score(
        lambda batch: session({key: np.asarray(batch[key], np.int32) for key in INPUTS}), file
    )


def _names(text: str, known: dict, flag: str, parser: argparse.ArgumentParser) -> list[str]:
    """Names of a list with semicolons; exit with status 2 for one that does not exist."""
    names = [name.strip() for name in text.split(";") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        parser.error(
            f"{flag}: unknown name {', '.join(unknown) or text!r}; known: {'; '.join(known)}"
        )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shared", type=pathlib.Path, help="folder with models/ and data/, for F1 on SQuAD")
    add("--fresh", action="store_true", help="forget earlier rows and files")
    add("--models", default=";".join(DEFAULT_MODELS), help=f"of {'; '.join(CONFIGS)}")
    add("--files", default=";".join(FILES), help="which files, by name, with semicolons")
    add("--lengths", default="128,384", help="tokens of a call")
    add("--threads", type=int, default=2)
    add("--seconds", type=float, default=5.0, help="of timing for each file and length")
    add("--questions", type=int, default=500, help="that F1 is measured on, evenly spread")
    add("--output", type=pathlib.Path, default=ROOT / "output" / NAME, help="where files go")
    return parser


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    models = _names(options.models, CONFIGS, "--models", parser)
    files = _names(options.files, FILES, "--files", parser)
    lengths = options.lengths.split(",")
    if not all(length.isdigit() and int(length) for length in lengths):
        parser.error(f"--lengths={options.lengths}: must be whole numbers above 0, with commas")
    if missing := TARGETS["matmul_nbits"].missing_packages(checked=True):
        parser.error(f"needs {', '.join(missing)}: pip install -e '.[export]'")
    squad = None if options.shared is None else Squad(options.shared.resolve())
    results = Results(NAME, seed=SEED, fresh=options.fresh, packages=("onnx", "onnxruntime"))
    if options.fresh:
        for path in options.output.glob("*/*.onnx"):
            path.unlink()
    for name in models:
        encoder = Encoder(name, options.output, squad)
        results.row(f"{name}, sizes", lambda e=encoder: sizes(e, files))
        for length in map(int, lengths):
            results.row(
                f"{name}, batch 1, length {length}",
                lambda e=encoder, n=length: timed(e, files, n, options.threads, options.seconds),
            )
    if squad is not None and "MiniLM" in models:
        encoder, dev = Encoder("MiniLM", options.output, squad), DevSet(squad, options.questions)
        for file in files:
            if FILES[file].scored:
                results.row(
                    f"MiniLM, F1 of {file}",
                    lambda e=encoder, f=file: scored(e, f, dev, options.threads),
                )
    print("\n\n".join(table(results.rows, name) for name in models))


if __name__ == "__main__":
    main()
