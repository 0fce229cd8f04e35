"""Time to plan and insert quantizers for a 12-layer, 768-wide BERT, randomly initialised.

    python -m benchmarks.planning

Both times include tracing the model; medians of several rounds after one that is not counted.
"""

from __future__ import annotations

import modeling
import tfquant
from benchmarks import timing
from benchmarks.results import Results
from tfquant.model import engine_of

RECIPE = "int8_residual_both"
ROUNDS = 5


def measure() -> dict:
    config = modeling.BertConfig(
        vocab_size=30522,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    model = modeling.build_squad_model(config)
    seconds = timing.medians(
        timing.interleaved(
            {
                "plan": lambda: tfquant.plan(model, RECIPE),
                "quantize": lambda: engine_of(tfquant.quantize(model, RECIPE)).function(
                    "quantized"
                ),
            },
            rounds=ROUNDS,
            warm_up=1,
            label="planning",
        )
    )
    return {
        "plan seconds": round(seconds["plan"], 2),
        "quantize seconds": round(seconds["quantize"], 2),
        "sites": len(tfquant.plan(model, RECIPE).sites),
        "rounds": ROUNDS,
    }


def main() -> None:
    Results("planning", seed=0, fresh=True).row("bert-base", measure)


if __name__ == "__main__":
    main()
