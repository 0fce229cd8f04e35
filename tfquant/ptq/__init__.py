"""Post-training quantization: methods that improve a model before and after calibration.

report = tfquant.ptq.equalize(model, batches)
report = tfquant.ptq.adaround(quantized, batches)
report = tfquant.ptq.gptq(quantized, batches)
"""

from tfquant.ptq.adaround.adaround import adaround
from tfquant.ptq.adaround.options import Options
from tfquant.ptq.adaround.report import AdaRoundReport, LayerResult
from tfquant.ptq.bias_correction import BiasReport, BiasShift, correct_bias
from tfquant.ptq.equalization.equalize import equalize, rescale
from tfquant.ptq.equalization.report import EqualizationReport, PairResult
from tfquant.ptq.gptq.gptq import gptq
from tfquant.ptq.gptq.options import Options as GPTQOptions
from tfquant.ptq.gptq.report import GPTQReport
from tfquant.ptq.gptq.report import LayerResult as GPTQLayerResult

__all__ = [
    "AdaRoundReport",
    "BiasReport",
    "BiasShift",
    "EqualizationReport",
    "GPTQLayerResult",
    "GPTQOptions",
    "GPTQReport",
    "LayerResult",
    "Options",
    "PairResult",
    "adaround",
    "correct_bias",
    "equalize",
    "gptq",
    "rescale",
]
