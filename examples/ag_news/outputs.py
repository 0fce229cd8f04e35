"""Results of a run: log, accuracies, best weights, curves, sizes."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

import tfquant
from calib.figures import new_figure, write_png
from examples.ag_news.data import INPUTS
from examples.ag_news.settings import Settings
from fileio.atomic import replacing, write_json, write_text
from runs.logging import log
from runs.versions import versions
from tfquant import formats
from tfquant.recipes.patterns import recipe_of

_COLUMNS = ("", "Epoch", "Iteration", "Train Loss", "Train Acc")
_LONGEST = 512  # tokens of the text that memory is measured on, as in the source
_BYTES = 2  # of a float parameter in the source's count


def write(
    settings: Settings,
    figures: Mapping[str, Any],
    rows: np.ndarray,
    accuracy: np.ndarray,
    best: Mapping[str, np.ndarray],
) -> None:
    """Write all files of a run.

    Args:
      settings: of the run.
      figures: for the results file.
      rows: float [rows, 4], epoch, iteration, loss and accuracy.
      accuracy: float [epochs], of the test, in percent.
      best: weights of the best epoch, by path.
    """
    begin = os.path.join(settings.output_dir, settings.exp_name)
    write_text(f"{begin}_log.csv", log_text(rows), make_folder=True)
    with replacing(f"{begin}_test.npy") as path, open(path, "wb") as stream:
        np.save(stream, accuracy)
    with replacing(f"{begin}_best.npz") as path, open(path, "wb") as stream:
        np.savez(stream, **best)
    write_png(
        curves({settings.exp_name: (rows, accuracy)}, _barrier(settings)), f"{begin}_curves.png"
    )
    report = {
        "flags": dataclasses.asdict(settings),
        "versions": versions(),
        "figures": dict(figures),
    }
    write_json(f"{begin}_results.json", report, indent=1)
    log(f"wrote {begin}_results.json")


def _barrier(settings: Settings) -> int | None:
    return settings.latent_epochs if settings.latent else None


def log_text(rows: np.ndarray) -> str:
    """Text of the log in the columns of the source."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for number, (epoch, iteration, loss, accuracy) in enumerate(rows):
        writer.writerow([number, int(epoch), int(iteration), f"{loss:.6f}", f"{accuracy:.4f}"])
    return stream.getvalue()


def curves(runs: Mapping[str, tuple[np.ndarray, np.ndarray]], barrier: int | None = None) -> Any:
    """Figure of training accuracy and of test accuracy by epoch.

    Args:
      runs: name -> rows of the log and test accuracies.
      barrier: epochs in float of latent quantization, marked by a line.
    """
    figure = new_figure(12.0, 4.0)
    training, testing = figure.subplots(1, 2)
    for name, (rows, accuracy) in runs.items():
        epochs = rows[:, 0] + rows[:, 1] / max(rows[:, 1].max(initial=1.0), 1.0)
        training.plot(epochs, rows[:, 3], label=name)
        testing.plot(range(len(accuracy)), accuracy, "o--", label=name)
    if barrier is not None:
        training.axvline(barrier, color="red", label="latent barrier")
        testing.axvline(barrier, color="red", label="latent barrier")
    training.set(title="Learning curve", xlabel="epoch", ylabel="training accuracy in percent")
    testing.set(title="Test set performance", xlabel="epoch", ylabel="test accuracy in percent")
    training.legend()
    testing.legend()
    return figure


def parts_of(model: keras.Model) -> dict[str, str]:
    """Part of the network that each trainable variable belongs to, in the source's terms.

    Linear layers are found by structure; of other variables, tables are embeddings.

    Args:
      model: the float classifier.

    Returns:
      Path of the variable -> MHA, FFN, CLS, embeddings or LayerNorm.
    """
    found = {}
    for name in ("MHA", "FFN", "CLS"):
        recipe = recipe_of(name, tfquant.QuantSpec("int8"), keep_final=False)
        found |= {site.path: name for site in tfquant.plan(model, recipe).sites}
    parts = {}
    for variable in model.trainable_variables:
        other = "embeddings" if len(variable.shape) > 1 else "LayerNorm"
        parts[variable.path] = found.get(variable.path.rpartition("/")[0], other)
    return parts


def sizes(model: keras.Model, network: Any, longest: int) -> dict[str, Any]:
    """Figures of size: parameters by part, bytes stored, memory of activations.

    Args:
      model: the float classifier.
      network: the model itself, or what it was quantized to.
      longest: text in tokens that the model takes.
    """
    parameters: dict[str, int] = {}
    parts = parts_of(model)
    for variable in model.trainable_variables:
        part = parts[variable.path]
        parameters[part] = parameters.get(part, 0) + int(np.prod(variable.shape))
    quantized = network is not model
    bits = _bits_of(network) if quantized else {}
    counted = 0.0
    for variable in model.trainable_variables:
        if parts[variable.path] not in ("embeddings", "LayerNorm"):
            share = bits.get(variable.path, 8 * _BYTES) / (8 * _BYTES)
            counted += _BYTES * share * int(np.prod(variable.shape))
    report = tfquant.size_report(network) if quantized else None
    float_bytes = sum(4 * count for count in parameters.values())
    batch = {name: np.ones((1, min(_LONGEST, longest)), np.int32) for name in INPUTS}
    return {
        "parameters": parameters,
        "source_size": round(counted),
        "float_bytes": float_bytes,
        "packed_bytes": float_bytes if report is None else report.packed_bytes,
        "activation_bytes": tfquant.activation_memory(network, batch).peak_bytes,
    }


def _bits_of(network: Any) -> dict[str, int]:
    """Bits of the quantized kernels, by path of the variable."""
    return {
        f"{site.path}/kernel": formats.get(site.spec.format).bits
        for site in network.plan.sites
        if site.is_weight and site.enabled
    }


def show_sites(network: Any) -> None:
    """Log what is quantized."""
    weights = sum(site.is_weight for site in network.plan.sites)
    others = len(network.plan.sites) - weights
    log(f"quantizes {weights} kernels and {others} activations")
