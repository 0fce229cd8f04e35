"""Options of GPTQ."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of `tfquant.ptq.gptq`.

    Attributes:
      percdamp: added to the diagonal of each Hessian, as a share of its mean.
      block_columns: inputs whose errors are compensated among each other before those behind them
        are updated at once; of influence on time only.
      act_order: round the inputs in the order of falling diagonal of the Hessian. Blocks then have
        the scales of the original weights (`static_groups` of the authors' code); else those of the
        weights when rounding comes to the block.
      compensate: change the weights of later inputs so that they make up for errors; False rounds
        each weight to nearest, so that only the scales of blocks are chosen.
      search_scales: search the scale of each block for the least squared error, weighted with the
        mean squares of the inputs; False: its largest magnitude is the largest code. Ranges that
        calibration found stay as they are.
      asymmetric: inputs come from the network with all weights before the layer quantized, not
        from the float one.
      quantize_activations: and that network rounds its activations as well.
    """

    percdamp: float = 0.01
    block_columns: int = 128
    act_order: bool = True
    compensate: bool = True
    search_scales: bool = True
    asymmetric: bool = True
    quantize_activations: bool = False

    def __post_init__(self) -> None:
        percdamp, columns = self.percdamp, self.block_columns
        number = isinstance(percdamp, (int, float)) and not isinstance(percdamp, bool)
        if not number or not 0.0 < percdamp < math.inf:
            raise ValueError(f"percdamp is {percdamp!r}; it must be above 0 and finite")
        if isinstance(columns, bool) or not isinstance(columns, int) or columns < 1:
            raise ValueError(f"block_columns is {columns!r}; it must be a whole number from 1")
        for field in (f.name for f in dataclasses.fields(self) if f.type == "bool"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be True or False")
        if self.quantize_activations and not self.asymmetric:
            raise ValueError(
                "quantize_activations needs asymmetric=True: the float network has float"
                " activations"
            )
