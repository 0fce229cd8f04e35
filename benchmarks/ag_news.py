"""The three experiments of "Transformer-Quantization" on AG News: medians of three seeds.

    python -m benchmarks.ag_news --shared=../shared --experiment=1

1: methods; 2: parts of the network; 3: initialisation. Each trains examples/run_ag_news.py once for
every row and seed, 10 epochs on the texts in data/ag_news_csv, and writes the rows of
results/ag_news.json and the figures results/ag_news_<experiment>.png. A seed that is in the result
file, or whose run has ended in the output folder, is not trained again, and a run that was cut off
continues.
"""

from __future__ import annotations

import csv
import functools
import json
import pathlib
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.command_line import shared_parser
from benchmarks.results import FOLDER, Results
from benchmarks.scripts import ROOT, RunQueue, run_script
from benchmarks.squad_qat import PRETRAINED, folder_of, pretrained_folder

SEEDS = (0, 1, 2)
SIZES = ("source_size", "float_bytes", "packed_bytes", "activation_bytes")
_NAME = "run"  # --exp_name
_RESULT = f"{_NAME}_results.json"
_BASIC = "--quant_type=quantization --quant_method=basic"
_FULLY = "--quant_type=quantization --quant_method=fully --bit_num=8"
_SIGN = "--quant_type=binarization --quant_method=basic"
_PRE_TRAINED = "--pre_trained --width=384 --heads=12"  # the encoder that is at hand
# Experiment -> row -> options. Rows of several experiments are trained once.
EXPERIMENTS: dict[int, dict[str, str]] = {
    1: {
        "baseline": "",
        "basic, 8 bits": f"{_BASIC} --bit_num=8",
        "basic, 4 bits": f"{_BASIC} --bit_num=4",
        "basic, 2 bits": f"{_BASIC} --bit_num=2",
        "fully, 8 bits": _FULLY,
        "ALL, basic": f"{_SIGN} --quant_pattern=ALL",
        "ALL, IR-Net": "--quant_type=binarization --quant_method=ir --quant_pattern=ALL",
    },
    2: {
        "baseline": "",
        "MHA": f"{_SIGN} --quant_pattern=MHA",
        "MHA_QK": f"{_SIGN} --quant_pattern=MHA_QK",
        "FFN": f"{_SIGN} --quant_pattern=FFN",
        "CLS with the final layer": f"{_SIGN} --quant_pattern=CLS --noskip_final",
        "ALL with the final layer": f"{_SIGN} --quant_pattern=ALL --noskip_final",
        "ALL, basic": f"{_SIGN} --quant_pattern=ALL",
        "ALL_QK": f"{_SIGN} --quant_pattern=ALL_QK",
        "ALL_QV": f"{_SIGN} --quant_pattern=ALL_QV",
        "ALL_KV": f"{_SIGN} --quant_pattern=ALL_KV",
    },
    3: {
        "baseline": "",
        "baseline, pre-trained": _PRE_TRAINED,
        "fully, 8 bits": _FULLY,
        "fully, 8 bits, pre-trained": f"{_FULLY} {_PRE_TRAINED}",
        "fully, 8 bits, latent": f"{_FULLY} --latent",
        "ALL, basic": f"{_SIGN} --quant_pattern=ALL",
        "ALL, basic, pre-trained": f"{_SIGN} --quant_pattern=ALL {_PRE_TRAINED}",
        "ALL, basic, latent": f"{_SIGN} --quant_pattern=ALL --latent",
    },
}

ROWS = {name: options for rows in EXPERIMENTS.values() for name, options in rows.items()}


def command(options: str, seed: int, shared: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Arguments of run_ag_news.py."""
    words = [
        f"--data_dir={shared / 'data' / 'ag_news_csv'}",
        f"--vocab_file={shared / 'models' / 'minilm_squad' / 'vocab.txt'}",
        *("--amp", f"--seed={seed}", f"--exp_name={_NAME}", f"--output_dir={folder}"),
        *options.split(),
    ]
    if "--pre_trained" in words:
        words.append(f"--pretrained_checkpoint={pretrained_folder()}")
    return words


def folder(name: str, seed: int, output: pathlib.Path) -> pathlib.Path:
    return folder_of(name, output) / f"seed_{seed}"


def run_one(name: str, seed: int, shared: pathlib.Path, output: pathlib.Path, threads: int) -> None:
    """Train a row with one seed unless its result is there."""
    where = folder(name, seed, output)
    run_script(
        f"{name}, seed {seed}",
        "examples/run_ag_news.py",
        command(ROWS[name], seed, shared, where),
        where,
        where / "run.log",
        threads,
        _RESULT,
    )


def compute(
    name: str, earlier: Mapping[str, Any], shared: pathlib.Path, output: pathlib.Path
) -> dict[str, Any]:
    """Test accuracies of every seed that has ended, sizes, the log of the first seed, the command;
    with all seeds the median of their best accuracies.

    Args:
        name: of the row.
        earlier: figures of the row that are known.
        shared: folder of data and model.
        output: folder of the runs.
    """
    accuracy = dict(earlier.get("accuracy", {}))
    found = {key: earlier[key] for key in (*SIZES, "log") if key in earlier}
    for seed in missing_seeds(earlier):
        result = folder(name, seed, output) / _RESULT
        if not result.exists():
            continue
        figures = json.loads(result.read_text())["figures"]
        accuracy[str(seed)] = [round(value, 2) for value in figures["test_accuracy"]]
        found |= {key: figures[key] for key in SIZES}
        if seed == SEEDS[0]:
            found["log"] = read_log(result.with_name(f"{_NAME}_log.csv"))
    # Of latent runs the epoch in float does not count.
    first = 1 if "--latent" in ROWS[name].split() else 0
    best = {seed: max(values[first:]) for seed, values in accuracy.items()}
    text = " ".join(["run_ag_news.py", *command(ROWS[name], SEEDS[-1], shared, output)])
    for path, short in ((output, "OUTPUT"), (shared, "SHARED"), (pretrained_folder(), PRETRAINED)):
        text = text.replace(str(path), f"${short}")
    done = {}
    if len(best) == len(SEEDS):
        values = list(best.values())
        done["median"] = statistics.median(values)
        done["spread"] = round(max(values) - min(values), 2)
    return {"best": best, **done, "accuracy": accuracy, **found, "command": text}


def missing_seeds(figures: Mapping[str, Any]) -> list[int]:
    """Seeds that a row has no accuracy of."""
    return [seed for seed in SEEDS if str(seed) not in figures.get("accuracy", {})]


def read_log(path: pathlib.Path) -> list[list[float]]:
    """Epoch, iteration, mean loss and accuracy in percent, by rows."""
    with open(path, newline="") as stream:
        return [[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]


def draw(experiment: int, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the figure of an experiment: curves of the first seed of every row that is there."""
    # Not above: the tables read this module's rows, and TensorFlow takes seconds to import.
    from calib.figures import write_png
    from examples.ag_news.outputs import curves

    runs = {
        name: (np.array(rows[name]["log"]).reshape(-1, 4), rows[name]["accuracy"][str(SEEDS[0])])
        for name in EXPERIMENTS[experiment]
        if "log" in rows.get(name, {})
    }
    if runs:
        write_png(curves(runs), FOLDER / f"ag_news_{experiment}.png")


def main() -> None:
    parser = shared_parser(__doc__, "data/ag_news_csv/ and models/minilm_squad/", fresh=True)
    parser.add_argument("--experiment", type=int, choices=EXPERIMENTS, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / "ag_news")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument(
        "--finished",
        action="store_true",
        help="start nothing: take the runs in --output that have ended",
    )
    options = parser.parse_args()
    results = Results("ag_news", seed=SEEDS[0], fresh=options.fresh)
    shared, output = options.shared.resolve(), options.output.resolve()
    wanted = list(dict.fromkeys(n for number in options.experiment for n in EXPERIMENTS[number]))

    def update(name: str) -> None:
        earlier = results.rows.pop(name, {})  # seeds may be missing
        results.row(name, lambda: compute(name, earlier, shared, output))

    with RunQueue(options.jobs) as queue:
        for seed in SEEDS:  # a first seed of all rows says more than all seeds of one
            for name in wanted:
                if (folder(name, seed, output) / _RESULT).exists():
                    update(name)
                elif not options.finished and seed in missing_seeds(results.rows.get(name, {})):
                    work = functools.partial(run_one, name, seed, shared, output, queue.threads)
                    queue.add((name, seed), work)
        for name, _ in queue.ended():
            update(name)
    for experiment in options.experiment:
        draw(experiment, results.rows)


if __name__ == "__main__":
    main()
