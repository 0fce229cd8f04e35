"""An exported file against the simulation that it was made from, on the same batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from tfquant.export.errors import ExportError

Outputs = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two networks agree.

    Attributes:
      largest, mean: absolute difference over all elements of all outputs.
      same: share of rows (all axes but the last) whose largest element is at the same place.
      spread: mean absolute value of the simulation's outputs about their mean, what the differences are to be seen against.
      batches: how many were compared.
    """

    largest: float
    mean: float
    same: float
    spread: float
    batches: int

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest:.3g}, mean {self.mean:.3g} (outputs vary by {self.spread:.3g}), "
            f"same answer in {100 * self.same:.2f} % of rows, {self.batches} batches"
        )


def compared(simulated: Callable[[object], Outputs], exported: Callable[[object], Outputs], batches: Iterable[object]) -> Agreement:
    """Runs both on every batch.

    Raises:
      ValueError: there is no batch, or the outputs differ in name or shape.
    """
    largest, sums, variation, sizes, same, count = 0.0, 0.0, 0.0, 0, [], 0
    for batch in batches:
        count += 1
        expected, found = simulated(batch), exported(batch)
        if expected.keys() != found.keys():
            raise ValueError(f"outputs differ: {sorted(expected)} in the simulation, {sorted(found)} in the exported file")
        for name, one in expected.items():
            if one.shape != found[name].shape:
                raise ValueError(f"output {name!r} has shape {list(one.shape)}, in the exported file {list(found[name].shape)}")
            difference = np.abs(one.astype(np.float64) - found[name])
            largest, sums = max(largest, float(difference.max(initial=0.0))), sums + float(difference.sum())
            variation, sizes = variation + float(np.abs(one - one.mean()).sum(dtype=np.float64)), sizes + one.size
            if one.ndim > 1:
                same.append((one.argmax(-1) == found[name].argmax(-1)).ravel())
    if count == 0:
        raise ValueError("no batch was given to compare on: pass at least one as check_data")
    share = float(np.concatenate(same).mean()) if same else 1.0
    return Agreement(largest, sums / max(sizes, 1), share, variation / max(sizes, 1), count)


def onnx_runner(path: str, names: Sequence[str], *, as_written: bool = False) -> Callable[[Sequence[np.ndarray]], Outputs]:
    """Runs an ONNX file in ONNX Runtime on flat inputs in the order of `names`.

    Args:
      path: of the file.
      names: of the inputs.
      as_written: node by node, nothing fused into integer kernels.

    Raises:
      ModuleNotFoundError: onnxruntime is not installed.
      ExportError: it cannot read the file.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        how = "pip install 'tfquant[export]'"
        raise ModuleNotFoundError(f"checking an ONNX file needs {error.name}: {how}", name=error.name) from None

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Without it sums of unsigned times signed products overflow 16 bits on processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds, all of ONNX Runtime's own
        raise ExportError(f"{path}: ONNX Runtime cannot read it: {' '.join(str(error).split())[:300]}") from error
    known = {entry.name for entry in session.get_inputs()}  # an input that nothing depends on is left out of the graph
    outputs = [entry.name for entry in session.get_outputs()]

    def run(flat: Sequence[np.ndarray]) -> Outputs:
        feed = {name: np.asarray(value) for name, value in zip(names, flat, strict=True) if name in known}
        return dict(zip(outputs, session.run(outputs, feed), strict=True))

    return run
