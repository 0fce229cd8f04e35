"""Number formats x fusion levels on SQuAD: run_squad.py --sweep of the 6-layer MiniLM.

    python -m benchmarks.eight_bit_squad --shared=../shared

Scores the first 1,000 windows of the dev part: the formats that --sweep takes by default, and those
of few bits with a scale as well, without which most weights become zero. A row of
results/eight_bit_squad.json is a number format; results/eight_bit_squad.png is the heat map. What
has been scored stays in the output folder, so that a run that was cut off goes on.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil

from benchmarks.command_line import shared_parser
from benchmarks.results import FOLDER, Results
from benchmarks.scripts import ROOT, run_script
from runs.squad.flags import SWEPT

NAME, SEED = "eight_bit_squad", 0
SCALED = ("e3m2,qs=per_tensor_symmetric", "e2m1,qs=per_tensor_symmetric")
COMMON = (
    "--max_seq_length=384 --doc_stride=128 --num_eval_iterations=125 --predict_batch_size=8"
    " --train_batch_size=16 --calib_batch=16"
)


def command(shared: pathlib.Path, output: pathlib.Path) -> list[str]:
    """Arguments of run_squad.py."""
    model, data = shared / "models" / "minilm_squad", shared / "data" / "squad"
    return [
        "--sweep",
        f"--bert_config_file={model / 'config.json'}",
        f"--vocab_file={model / 'vocab.txt'}",
        f"--init_checkpoint={model}",
        f"--train_file={data / 'train-v1.1-subset.json'}",
        f"--predict_file={data / 'dev-v1.1-part.json'}",
        *("--sweep_formats", *SWEPT, *SCALED),
        *COMMON.split(),
        f"--output_dir={output}",
    ]


def main() -> None:
    parser = shared_parser(__doc__, "models/minilm_squad/ and data/squad/", fresh=True)
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "output" / NAME)
    options = parser.parse_args()
    results = Results(NAME, seed=SEED, fresh=options.fresh)
    output = options.output.resolve()
    words = command(options.shared.resolve(), output)
    run_script("the sweep", "run_squad.py", words, output, output / "run.log", os.cpu_count() or 1)
    scores = json.loads((output / "results.json").read_text())["figures"]["sweep"]
    for name, levels in scores.items():
        f1 = {level or "float": round(figures["f1"], 2) for level, figures in levels.items()}
        results.row(name, lambda f1=f1: {"f1": f1})
    shutil.copyfile(output / "squad_f1.png", FOLDER / f"{NAME}.png")


if __name__ == "__main__":
    main()
