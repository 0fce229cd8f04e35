"""Time to plan and insert quantizers for a 12-layer, 768-wide BERT, randomly initialised.

python -m benchmarks.planning
"""

from __future__ import annotations

import time

import modeling
import tfquant
from benchmarks.results import Results
from tfquant.model import engine_of


def measure() -> dict:
    config = modeling.BertConfig(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    model = modeling.build_squad_model(config)
    start = time.perf_counter()
    plan = tfquant.plan(model, "int8_residual_both")
    planned = time.perf_counter()
    quantized = tfquant.quantize(model, "int8_residual_both")
    engine_of(quantized).function("quantized")
    inserted = time.perf_counter()
    return {
        "plan seconds": round(planned - start, 2),
        "quantize seconds": round(inserted - planned, 2),
        "sites": len(plan.sites),
    }


def main() -> None:
    Results("planning", seed=0, fresh=True).row("bert-base", measure)


if __name__ == "__main__":
    main()
