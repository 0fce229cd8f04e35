"""Incremental quantization, multi-bit weights and Q8BERT on four GLUE tasks: run_glue.py.

    python -m benchmarks.low_bit_glue --shared=../shared

Float models are those of `make glue`, trained here with one seed. A row of
results/low_bit_glue.json is one way to quantize; a score that is in the result file, or whose run
is in the output folder, is not computed again.
"""

from __future__ import annotations

import dataclasses

from benchmarks import glue
from benchmarks.glue import SEEDS, Row, Suite

TASKS = {
    task: dataclasses.replace(glue.TASKS[task], seeds=SEEDS[:1])
    for task in ("cola", "mrpc", "stsb", "rte")
}
# Shares are frozen at even distances, the last one when training ends.
STAGES = "--warmup-steps 50 --learning-rate 2e-5 --num-epochs 4"
ROWS = {
    "float": Row("train-baseline"),
    "INQ p2, 5 bits": Row("train-quantized", "--inq-mode p2 --nbits 5", STAGES),
    "INQ lin, 4 bits": Row("train-quantized", "--inq-mode lin --nbits 4", STAGES),
    "INQ mb, 2 bits": Row("train-quantized", "--inq-mode mb --nbits 2", STAGES),
    "Q8BERT": Row(
        "train-quantized",
        "--quant-recipe q8bert",
        "--num-epochs 1 --warmup-steps 50 --learning-rate 1e-5",
    ),
}
LOW_BIT = Suite("low_bit_glue", ROWS, TASKS)

if __name__ == "__main__":
    glue.main(suite=LOW_BIT, description=__doc__)
