"""Time and memory to plan, quantize and run decoders of real size, randomly initialised.

    python -m benchmarks.decoders

GPT-2 small (124 million parameters, 12 layers, a window of 1,024 tokens) and Whisper tiny (39
million, 4 + 4 layers, 30 seconds of audio), each in a process of its own: planning, quantizing with
calibration on one example, and one quantized forward pass, whose graph is built then. The goal is
60 seconds and 6 GiB. Processor time is that of all threads, which other processes do not change.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.results import Results

RECIPE = "int8_residual_float_asymmetric"


def gpt2() -> tuple[Any, Any, int]:
    """Return the network, one example, and the number of parameters."""
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=50257,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=1024,
    )
    ids = np.random.default_rng(0).integers(0, 50257, (1, 1024)).astype(np.int32)
    example = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    return model, example, backbone.count_params()


def whisper() -> tuple[Any, Any, int]:
    """Return the network, one example, and the number of parameters."""
    import keras
    import keras_hub

    backbone = keras_hub.models.WhisperBackbone(
        vocabulary_size=51865,
        num_layers=4,
        num_heads=6,
        hidden_dim=384,
        intermediate_dim=1536,
    )
    generator = np.random.default_rng(0)
    ids = generator.integers(0, 51865, (1, 448)).astype(np.int32)
    example = {
        "encoder_features": generator.normal(size=(1, 3000, 80)).astype(np.float32),
        "decoder_token_ids": ids,
        "decoder_padding_mask": np.ones_like(ids),
    }
    hidden = backbone.output["decoder_sequence_output"]
    logits = backbone.token_embedding(hidden, reverse=True)
    return keras.Model(backbone.input, logits), example, backbone.count_params()


MODELS: dict[str, Callable[[], tuple[Any, Any, int]]] = {
    "gpt2-small": gpt2,
    "whisper-tiny": whisper,
}


def measure(build: Callable[[], tuple[Any, Any, int]]) -> dict[str, Any]:
    """Return seconds and the peak memory of this process for one model."""
    import tfquant

    model, example, parameters = build()
    processor, started = time.process_time(), time.perf_counter()
    plan = tfquant.plan(model, RECIPE)
    planned = time.perf_counter()
    quantized = tfquant.quantize(model, RECIPE, calibration=[example], progress=False)
    calibrated = time.perf_counter()
    logits = np.asarray(quantized(example))
    done = time.perf_counter()
    if not np.isfinite(logits).all():
        raise RuntimeError("logits are not finite")
    return {
        "parameters": parameters,
        "sites": len(plan.sites),
        "plan seconds": round(planned - started, 2),
        "quantize seconds": round(calibrated - planned, 2),
        "forward seconds": round(done - calibrated, 2),
        "seconds": round(done - started, 2),
        "processor seconds": round(time.process_time() - processor, 2),
        "peak GiB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def measure_apart(name: str) -> dict[str, Any]:
    """Return the figures of a model from a process of its own, whose peak memory is its alone."""
    command = [sys.executable, "-m", "benchmarks.decoders", f"--one={name}"]
    environment = os.environ | {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(MODELS[options.one])), flush=True)
        return
    results = Results("decoders", seed=0, fresh=True)
    for name in MODELS:
        results.row(name, lambda name=name: measure_apart(name))


if __name__ == "__main__":
    main()
