"""What improves a calibrated model without training it.

    report = tfquant.ptq.adaround(quantized, batches)
"""

from tfquant.ptq.adaround import adaround
from tfquant.ptq.options import Options
from tfquant.ptq.report import AdaRoundReport, LayerResult

__all__ = ["AdaRoundReport", "LayerResult", "Options", "adaround"]
