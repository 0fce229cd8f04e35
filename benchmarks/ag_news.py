"""The three experiments of "Transformer-Quantization" on AG News: medians of three seeds.

    python -m benchmarks.ag_news --shared=../shared --experiment=1

1: methods; 2: parts of the network; 3: initialisation. Each trains examples/run_ag_news.py once for
every row and seed, 10 epochs on the texts in data/ag_news_csv, and writes a row of
results/ag_news.json and the figures results/ag_news_<experiment>.png. Runs that have ended in the
output folder are not started again, and one that was cut off continues.
"""

from __future__ import annotations

import csv
import json
import os
import pathlib
import statistics
from typing import Any

import numpy as np

from benchmarks.command_line import shared_parser
from benchmarks.results import FOLDER, Results
from benchmarks.scripts import ROOT, run_script
from benchmarks.squad_qat import PRETRAINED, folder_of, pretrained_folder
from calib.figures import write_png
from examples.ag_news.outputs import curves

SEEDS = (0, 1, 2)
_NAME = "run"  # --exp_name
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


def compute(name: str, options: str, shared: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Best test accuracies of all seeds, their median and spread, sizes, and the command."""
    best, figures, words = {}, {}, []
    for seed in SEEDS:
        folder = folder_of(name, output) / f"seed_{seed}"
        words = command(options, seed, shared, folder)
        run_script(
            f"{name}, {seed}",
            "examples/run_ag_news.py",
            words,
            folder,
            folder / "run.log",
            os.cpu_count() or 1,
            f"{_NAME}_results.json",
        )
        figures = json.loads((folder / f"{_NAME}_results.json").read_text())["figures"]
        best[str(seed)] = round(figures["best"], 2)
    text = " ".join(["run_ag_news.py", *words]).replace(str(folder), "$OUTPUT")
    text = text.replace(str(shared), "$SHARED")
    if "--pre_trained" in words:
        text = text.replace(str(pretrained_folder()), f"${PRETRAINED}")
    values = list(best.values())
    sizes = ("source_size", "float_bytes", "packed_bytes", "activation_bytes")
    return {
        "best": best,
        "median": statistics.median(values),
        "spread": round(max(values) - min(values), 2),
        **{key: figures[key] for key in sizes},
        "command": text,
    }


def draw(experiment: int, output: pathlib.Path) -> None:
    """Write the figure of an experiment: curves of the first seed of every row."""
    runs = {}
    for name in EXPERIMENTS[experiment]:
        folder = folder_of(name, output) / f"seed_{SEEDS[0]}"
        with open(folder / f"{_NAME}_log.csv", newline="") as stream:
            rows = [[float(value) for value in row[1:]] for row in list(csv.reader(stream))[1:]]
        runs[name] = np.array(rows).reshape(-1, 4), np.load(folder / f"{_NAME}_test.npy")
    write_png(curves(runs), FOLDER / f"ag_news_{experiment}.png")


def main() -> None:
    parser = shared_parser(__doc__, "data/ag_news_csv/ and models/minilm_squad/", fresh=True)
    parser.add_argument("--experiment", type=int, choices=EXPERIMENTS, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / "ag_news")
    options = parser.parse_args()
    results = Results("ag_news", seed=SEEDS[0], fresh=options.fresh)
    shared, output = options.shared.resolve(), options.output.resolve()
    for experiment in options.experiment:
        for name, words in EXPERIMENTS[experiment].items():
            results.row(name, lambda n=name, w=words: compute(n, w, shared, output))
        draw(experiment, output)


if __name__ == "__main__":
    main()
