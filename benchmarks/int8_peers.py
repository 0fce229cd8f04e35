"""Exported int8 files beside those of other tools: latency, size, accuracy and how many products
run in integers.

    python -m benchmarks.int8_peers --shared=../shared

Two models: the MiniLM fine-tuned on SQuAD, and BERT-base with random weights, whose latency is that
of any. All pipelines start from the same float model and take turns in one run. A row of
results/int8_peers.json is one shape of one model, or the accuracy of one pipeline; rows that are
there are not measured again without --fresh.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import modeling
import tfquant
from benchmarks.command_line import shared_parser
from benchmarks.int8_peers_report import accuracy_table, export_cost, latency_table, parity_table
from benchmarks.int8_pipelines import PIPELINES, Pipeline, Source, with_7_bit_weights
from benchmarks.results import Results
from benchmarks.squad_data import INPUTS, DevSet, Squad
from tfquant.error_messages import one_line
from tfquant.export.targets import size_of
from tfquant.latency import Workload, measure
from tfquant.runtimes import onnxruntime

ROOT = pathlib.Path(__file__).resolve().parents[1]
SEED, WINDOWS = 12345, 256
# Files of ours whose answers are held against the simulation: name of the pipeline, recipe.
OURS = {
    "tfquant cpu_onnxruntime": "cpu_onnxruntime",
    "tfquant cpu_openvino with 7-bit weights, OpenVINO": with_7_bit_weights("cpu_openvino"),
    "tfquant litert, LiteRT": "litert",
}
SHAPES = ((1, 128), (1, 384), (8, 128), (8, 384))


def minilm(squad: Squad, folder: pathlib.Path) -> Source:
    return _source(
        squad.model(),
        modeling.BertConfig.from_json_file(squad.model_dir / "config.json"),
        folder,
        squad,
    )


def bert_base(squad: Squad, folder: pathlib.Path) -> Source:
    config = modeling.BertConfig(
        30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072
    )
    return _source(
        modeling.build_squad_model(config, dropout=False), config, folder, squad, windows=32
    )


def _source(
    model, config: modeling.BertConfig, folder: pathlib.Path, squad: Squad, windows: int = WINDOWS
) -> Source:
    folder.mkdir(parents=True, exist_ok=True)
    batches = squad.calibration_batches(windows, seed=SEED)
    return Source(model, batches, folder, config.num_attention_heads, config.hidden_size)


@functools.cache
def usable(source: Source) -> tuple[str, ...]:
    """Pipelines that are installed and do not fail on this model; the others are named."""
    result = []
    for name, pipeline in PIPELINES.items():
        try:
            if pipeline.missing:
                raise ModuleNotFoundError(f"needs {', '.join(pipeline.missing)}")
            pipeline.write(source)
            result.append(name)
        except Exception as error:  # of many kinds, each tool's own
            print(json.dumps({"not measured": name, "error": one_line(error, 300)}), flush=True)
    return tuple(result)


def timed(source: Source, batch: int, length: int, threads: int, seconds: float) -> dict:
    """p50 in milliseconds of every pipeline, and how many times as fast as the first one it is."""
    sessions = {
        name: PIPELINES[name].open(str(PIPELINES[name].write(source)), threads)
        for name in usable(source)
    }
    workload = Workload.of(next(iter(sessions.values())).inputs, batch, length)
    result = measure(sessions, workload, seconds)
    first = next(iter(result.values())).p50
    return {
        "p50": {name: round(one.p50, 2) for name, one in result.items()},
        "speed": {name: round(first / one.p50, 3) for name, one in result.items()},
        "threads": threads,
    }


def scored(source: Source, name: str, dev: DevSet, threads: int) -> dict:
    """Size, products in integers and the scores of a pipeline."""
    pipeline = PIPELINES[name]
    path = pipeline.write(source)
    session = pipeline.open(str(path), threads)
    products = session.contractions()
    return {
        **dev.score(
            lambda batch: session({key: np.asarray(batch[key], np.int32) for key in INPUTS}), name
        ),
        "questions": len(dev.examples),
        "size": size_of(path) + (size_of(path.with_suffix(".bin")) if path.suffix == ".xml" else 0),
        "integer": len(products.integer),
        "products": len(products.integer) + len(products.floating),
    }


def node_by_node(name: str) -> Pipeline:
    """The same file with nothing fused into integer kernels."""
    return dataclasses.replace(
        PIPELINES[name],
        open=lambda path, threads: onnxruntime.open_file(path, threads=threads, as_written=True),
    )


def parity(
    source: Source,
    pipeline: Pipeline,
    recipe: str | tfquant.Recipe,
    dev: DevSet,
    threads: int,
) -> dict:
    """Answers of one of our files beside those of the simulation it was made from."""
    session = pipeline.open(str(pipeline.write(source)), threads)
    simulation = tfquant.quantize(source.model, recipe, calibration=source.calibration)
    result = dev.answers(
        lambda batch: session({key: np.asarray(batch[key], np.int32) for key in INPUTS}), "the file"
    )
    return compared(result, dev.answers(simulation, "simulation"), dev)


def parity_with_itself(
    source: Source, recipe: str, dev: DevSet, move: Callable[[Any, Source], None]
) -> dict:
    """What is left of the simulation's answers after `move`.

    Nobody who computes otherwise in the last bit comes nearer.
    """
    simulation = tfquant.quantize(source.model, recipe, calibration=source.calibration)
    simulated = dev.answers(simulation, "simulation")
    table = _word_embeddings(source)
    before = np.asarray(table)
    try:
        move(simulation, source)
        moved = dev.answers(simulation, "simulation, moved")
    finally:
        table.assign(before)
    return compared(moved, simulated, dev)


def next_embeddings(_: Any, source: Source) -> None:
    table = _word_embeddings(source)
    table.assign(np.nextafter(np.asarray(table), np.float32(np.inf)))


def next_ranges(simulation: Any, _: Source) -> None:
    """As if what reaches every quantizer of an activation were the next float32."""
    for quantizer in simulation.quantizers.values():
        if not quantizer.site.is_weight:
            ends = (np.asarray(end, np.float32) for end in (quantizer.lower, quantizer.upper))
            quantizer.set_range(*(np.nextafter(end, np.float32(0.0)) for end in ends))


MOVES = {
    "every word embedding the next float32": next_embeddings,
    "every range of an activation the next float32": next_ranges,
}


def _word_embeddings(source: Source) -> Any:
    return next(
        variable for variable in source.model.variables if variable.path.endswith("word_embeddings")
    )


def compared(found: Mapping[str, str], simulated: Mapping[str, str], dev: DevSet) -> dict:
    return {
        "same answers": round(100.0 * sum(found[i] == simulated[i] for i in found) / len(found), 2),
        "f1 of the file": dev.scores_of(found)["f1"],
        "f1 of the simulation": dev.scores_of(simulated)["f1"],
        "questions": len(found),
    }


def cost_of_export(source: Source) -> dict:
    """Seconds, and memory at the peak beyond what the process held before, as a multiple of the
    float parameters.
    """
    model = tfquant.quantize(source.model, "cpu_onnxruntime", calibration=source.calibration)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, began = _memory("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        written = tfquant.export(model, pathlib.Path(folder, "model.onnx"))
    seconds = time.perf_counter() - began
    return {
        "seconds": round(seconds, 1),
        "memory": round((_memory("VmHWM") - before) / written.parameters, 2),
        "parameters": written.parameters,
    }


def _memory(what: str) -> int:
    """Bytes, as Linux counts them."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{what}:")))


def main() -> None:
    parser = shared_parser(__doc__, fresh=True)
    parser.add_argument(
        "--output", type=pathlib.Path, default=ROOT / "output" / "int8_peers", help="where files go"
    )
    parser.add_argument(
        "--questions", type=int, default=500, help="that accuracy is measured on, evenly spread"
    )
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="of timing for each pipeline and shape"
    )
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    squad, results = (
        Squad(options.shared.resolve()),
        Results("int8_peers", seed=SEED, fresh=options.fresh),
    )
    mini, dev = minilm(squad, options.output / "MiniLM"), DevSet(squad, options.questions)
    for name in usable(mini):
        results.row(f"MiniLM, {name}", lambda n=name: scored(mini, n, dev, options.threads))
    for name, recipe in OURS.items():
        results.row(
            f"MiniLM, parity of {name}",
            lambda n=name, r=recipe: parity(mini, PIPELINES[n], r, dev, options.threads),
        )
    results.row(
        "MiniLM, parity of tfquant cpu_onnxruntime, in float node by node",
        lambda: parity(
            mini, node_by_node("tfquant cpu_onnxruntime"), "cpu_onnxruntime", dev, options.threads
        ),
    )
    for what, move in MOVES.items():
        row = f"MiniLM, parity of the simulation, {what}"
        results.row(row, lambda m=move: parity_with_itself(mini, "cpu_onnxruntime", dev, m))
    measure_latency(results, "MiniLM", mini, options)
    base = bert_base(squad, options.output / "BERT-base")
    measure_latency(results, "BERT-base", base, options, SHAPES[:2])
    results.row("BERT-base, export", lambda: cost_of_export(base))
    rows = results.rows
    tables = [
        latency_table(rows, "MiniLM"),
        latency_table(rows, "BERT-base"),
        accuracy_table(rows, "MiniLM"),
        parity_table(rows),
    ]
    print("\n\n".join([*tables, export_cost(rows)]))


def measure_latency(
    results: Results, model: str, source: Source, options: argparse.Namespace, shapes=SHAPES
) -> None:
    for batch, length in shapes:
        results.row(
            f"{model}, batch {batch}, length {length}",
            lambda b=batch, n=length: timed(source, b, n, options.threads, options.seconds),
        )


if __name__ == "__main__":
    main()
