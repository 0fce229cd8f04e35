"""Exported int8 files beside those of other tools: latency, size, accuracy and how many products run in integers.

    python -m benchmarks.int8_peers --shared=../shared

Two models: the MiniLM fine-tuned on SQuAD, and BERT-base with random weights, whose latency is that of any. All pipelines start
from the same float model and are timed in turn in one run. A row of results/int8_peers.json is one shape of one model, or the
accuracy of one pipeline; rows that are there are not measured again without --fresh.
"""

from __future__ import annotations

import argparse
import json
import pathlib

import numpy as np

import modeling
from benchmarks.int8_pipelines import PIPELINES, Source
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, DevSet, Squad
from tfquant.export.targets import size_of
from tfquant.latency import Workload, measure

ROOT = pathlib.Path(__file__).resolve().parents[1]
SEED, WINDOWS = 12345, 256
SHAPES = ((1, 128), (1, 384), (8, 128), (8, 384))


def minilm(squad: Squad, folder: pathlib.Path) -> Source:
    return _source(squad.model(), modeling.BertConfig.from_json_file(squad.model_dir / "config.json"), folder, squad)


def bert_base(squad: Squad, folder: pathlib.Path) -> Source:
    config = modeling.BertConfig(vocab_size=30522)
    return _source(modeling.build_squad_model(config, dropout=False), config, folder, squad, windows=32)


def _source(model, config: modeling.BertConfig, folder: pathlib.Path, squad: Squad, windows: int = WINDOWS) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    batches = squad.calibration_batches(windows, seed=SEED)
    return Source(model, batches, folder, config.num_attention_heads, config.hidden_size)


def timed(source: Source, batch: int, length: int, threads: int, seconds: float) -> dict:
    """p50 in milliseconds of every pipeline, and how many times as fast as the first one it is."""
    sessions = {
        name: pipeline.open(str(pipeline.write(source)), threads) for name, pipeline in PIPELINES.items() if not pipeline.missing
    }
    workload = Workload.of(next(iter(sessions.values())).inputs, batch, length)
    found = measure(sessions, workload, seconds)
    first = next(iter(found.values())).p50
    return {
        "p50": {name: round(one.p50, 2) for name, one in found.items()},
        "speed": {name: round(first / one.p50, 3) for name, one in found.items()},
        "threads": threads,
    }


def scored(source: Source, name: str, dev: DevSet, threads: int) -> dict:
    """Size, products in integers and the scores of a pipeline."""
    pipeline = PIPELINES[name]
    path = pipeline.write(source)
    session = pipeline.open(str(path), threads)
    products = session.contractions()
    return {
        **dev.score(lambda batch: session({key: np.asarray(batch[key], np.int32) for key in INPUTS}), name),
        "questions": len(dev.examples),
        "size": size_of(path) + (size_of(path.with_suffix(".bin")) if path.suffix == ".xml" else 0),
        "integer": len(products.integer),
        "products": len(products.integer) + len(products.floating),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=pathlib.Path, default=pathlib.Path("../shared"), help="folder with models/ and data/")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / "int8_peers", help="where files go")
    parser.add_argument("--questions", type=int, default=500, help="that accuracy is measured on, evenly spread")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each pipeline and shape")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    options = parser.parse_args()
    squad, results = Squad(options.shared.resolve()), Results("int8_peers", seed=SEED, fresh=options.fresh)
    usable = [name for name, pipeline in PIPELINES.items() if not pipeline.missing]
    mini, dev = minilm(squad, options.output / "MiniLM"), DevSet(squad, options.questions)
    for name in usable:
        results.row(f"MiniLM, {name}", lambda n=name: scored(mini, n, dev, options.threads))
    measure_latency(results, "MiniLM", mini, options)
    measure_latency(results, "BERT-base", bert_base(squad, options.output / "BERT-base"), options)
    missing = {name: pipeline.missing for name, pipeline in PIPELINES.items() if pipeline.missing}
    if missing:
        print(json.dumps({"not measured, packages are missing": missing}))


def measure_latency(results: Results, model: str, source: Source, options: argparse.Namespace) -> None:
    for batch, length in SHAPES:
        results.row(
            f"{model}, batch {batch}, length {length}",
            lambda b=batch, n=length: timed(source, b, n, options.threads, options.seconds),
        )


if __name__ == "__main__":
    main()
