"""Table of costs in docs/benchmarks.md, from the results of `make bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Rows = Mapping[str, Any]
STEP = ("training_step", "training_step", "ratio to float")
# (what, where: file, row and keys, how it is written, goal)
LINES = (
    (
        "training step, batch 8, length 384: replayed graph without sites / float",
        (*STEP, "replayed, no site"),
        "{:.3f}",
        "at most 1.02",
    ),
    (
        "training step, `int8_residual_float` / float",
        (*STEP, "int8_residual_float"),
        "{:.3f}",
        "at most 1.15",
    ),
    (
        "training step, `int8_residual_both` / float",
        (*STEP, "int8_residual_both"),
        "{:.3f}",
        "at most 1.15",
    ),
    (
        "training step, `int8_residual`, all ranges learned (LSQ) / float",
        (*STEP, "int8_residual, lsq"),
        "{:.3f}",
        "at most 1.25",
    ),
    (
        "training step, `int8_residual`, moving averages / float",
        (*STEP, "int8_residual, moving_average"),
        "{:.3f}",
        "",
    ),
    (
        "training step, `int8_residual`, learned ranges and a teacher of the same size / float",
        (*STEP, "int8_residual, lsq, teacher"),
        "{:.3f}",
        "at most 1.6",
    ),
    (
        "training step, `e4m3` forward, gradients in `e5m2` with delayed scales / float",
        (*STEP, "e4m3, gradients e5m2"),
        "{:.3f}",
        "at most 1.35",
    ),
    (
        "training step, `posit8_1` forward and backward, delayed scales / float",
        (*STEP, "posit8_1, gradients posit8_1"),
        "{:.3f}",
        "at most 1.5",
    ),
    (
        "training step, IR-Net weights / float",
        (*STEP, "IR-Net weights"),
        "{:.3f}",
        "at most 1.3",
    ),
    (
        "training step, incremental quantization, half of the weights frozen / float",
        (*STEP, "INQ, half of the weights frozen"),
        "{:.3f}",
        "at most 1.05",
    ),
    (
        "float training step, freed memory returned to the system / kept (as `run_squad.py` does)",
        ("host_memory", "training step", "speed-up"),
        "{:.2f}",
        "",
    ),
    (
        "training in 2 processes of one thread / 1 process of one thread, examples/s",
        ("ranks", "training", "ratio"),
        "{:.2f}",
        "at least 1.8",
    ),
    (
        "2 independent trainings / 1, examples/s (upper bound of this machine)",
        ("ranks", "training", "ratio of two apart"),
        "{:.2f}",
        "",
    ),
    (
        "share of step time in all-reduce, 2 processes",
        ("ranks", "training", "all-reduce share"),
        "{:.1%}",
        "",
    ),
    (
        "calibration of 2,048 windows, speed-up of 2 processes over 1, same file",
        ("ranks", "calibration on 2048 windows", "ratio", "calibration"),
        "{:.2f}",
        "at least 1.8",
    ),
    (
        "2 independent calibrations / 1 (upper bound of this machine)",
        ("ranks", "calibration on 2048 windows", "ratio of two apart"),
        "{:.2f}",
        "",
    ),
    (
        "calibration of 256 windows, speed-up of 2 processes over 1",
        ("ranks", "calibration on 256 windows", "ratio", "calibration"),
        "{:.2f}",
        "",
    ),
    (
        "calibration of 256 windows, histograms at 61 sites / float forward",
        ("calibration_cost", "time", "ratio"),
        "{:.3f}",
        "at most 1.5",
    ),
    (
        "largest observer, bytes",
        ("calibration_cost", "time", "observer bytes", "largest"),
        "{:,}",
        "at most 32,768",
    ),
    (
        "peak memory of a calibrating / a predicting process",
        ("calibration_cost", "memory", "ratio"),
        "{:.3f}",
        "at most 1.2",
    ),
    (
        "planning for 12 layers, 768 wide, seconds",
        ("planning", "bert-base", "plan seconds"),
        "{:.2f}",
        "",
    ),
    (
        "planning and inserting quantizers for it, seconds",
        ("planning", "bert-base", "quantize seconds"),
        "{:.2f}",
        "at most 10",
    ),
    (
        "GPT-2 small, 1,024 tokens: planning, quantizing, one forward pass, seconds",
        ("decoders", "gpt2-small", "seconds"),
        "{:.1f}",
        "at most 60",
    ),
    (
        "the same, peak memory of the process, GiB",
        ("decoders", "gpt2-small", "peak GiB"),
        "{:.2f}",
        "at most 6",
    ),
    (
        "Whisper tiny, 30 s of audio, 448 tokens: the same, seconds",
        ("decoders", "whisper-tiny", "seconds"),
        "{:.1f}",
        "at most 60",
    ),
    (
        "the same, peak memory of the process, GiB",
        ("decoders", "whisper-tiny", "peak GiB"),
        "{:.2f}",
        "at most 6",
    ),
)


def table(rows_of: Callable[[str], Rows]) -> str:
    """Markdown: what was measured, and the goal; `rows_of` gives the rows of a result file."""
    lines = ["| | measured | goal |", "|---|---|---|"]
    for what, (file, *keys), form, goal in LINES:
        value: Any = rows_of(file)
        for key in keys:
            value = None if value is None else value.get(key)
        lines.append(
            f"| {what} | {'not measured' if value is None else form.format(value)} | {goal} |"
        )
    return "\n".join(lines)
