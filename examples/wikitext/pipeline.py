"""A run of run_wikitext.py from its settings to its figures."""

from __future__ import annotations

import itertools
import os
from typing import Any

import keras_hub
import numpy as np

from calib.tables import build, render
from examples.presets import load_preset
from examples.quantizing import quantize, write_results
from examples.wikitext import text
from examples.wikitext.scoring import batches_of, inputs_of, score
from examples.wikitext.settings import Settings
from examples.wikitext.sweep import sweep
from examples.wikitext.windows import Windows, make_windows
from fileio.messages import printable
from runs.logging import log

_INPUTS = {"token_ids", "padding_mask"}


def run(settings: Settings) -> dict[str, Any]:
    """Score the text with the float network and, if asked for, with the quantized one.

    Args:
        settings: that `check` has passed.

    Returns:
        The figures, which results.json holds as well.
    """
    model = load_model(settings)
    assert settings.text_file is not None
    windows = windows_of(model, settings.text_file, settings)
    # First, as it may refuse the recipe or its data.
    quantized = quantized_network(model, settings) if settings.quantizes else None
    figures: dict[str, Any] = {"windows": len(windows.token_ids)}
    figures["float"] = score(model, windows, settings, "float")
    if quantized is not None:
        network, report = quantized
        figures["quantized"] = score(network, windows, settings, "quantized") | report
    if settings.sweep:
        batches = calibration_batches(model, settings)
        figures["sweep"] = sweep(model, windows, batches, settings)
    write_results(settings, figures)
    log(table(figures))
    return figures


def load_model(settings: Settings) -> Any:
    """Return the causal language model of `--preset`.

    Raises:
        ValueError: the preset cannot be loaded, has no tokenizer, or takes other inputs than
            tokens.
    """
    model = load_preset(keras_hub.models.CausalLM, settings.preset or "", dtype=settings.dtype)
    where = f"--preset={printable(settings.preset)}"
    if getattr(model.preprocessor, "tokenizer", None) is None:
        raise ValueError(f"{where}: has no tokenizer; save the whole task with save_to_preset")
    names = set(model.input) if isinstance(model.input, dict) else set()
    if names != _INPUTS:
        raise ValueError(
            f"{where}: {type(model).__name__} takes {', '.join(sorted(names)) or 'other inputs'};"
            f" perplexity needs a model of {' and '.join(sorted(_INPUTS))}"
        )
    longest = getattr(model.backbone, "max_sequence_length", None)
    if longest is not None and settings.max_length > longest:
        raise ValueError(
            f"--max_length={settings.max_length}: the model takes at most {longest} tokens"
        )
    log(f"loaded {type(model).__name__} from {settings.preset}")
    return model


def windows_of(model: Any, path: str, settings: Settings) -> Windows:
    """Return the windows over a text.

    Raises:
        FileNotFoundError, ValueError: it cannot be read, is too short, or its tokens are not those
            of the model.
    """
    content = text.read(path, join_lines=settings.join_lines, tfds_dir=settings.tfds_dir)
    ids = text.tokenize(model.preprocessor.tokenizer, content, settings.start_token)
    size = model.backbone.vocabulary_size
    if len(ids) and not 0 <= ids.min() <= ids.max() < size:
        raise ValueError(
            f"{printable(path)}: token {ids.min() if ids.min() < 0 else ids.max()} is none of the"
            f" model's {size}; text and tokenizer do not fit"
        )
    try:
        windows = make_windows(ids, settings.max_length, settings.stride)
    except ValueError as error:
        raise ValueError(f"{printable(path)}: {error}") from None
    log(f"{path}: {len(ids)} tokens, {len(windows.token_ids)} windows")
    return windows


def quantized_network(model: Any, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the network quantized as the options say, and figures of that."""
    batches = calibration_batches(model, settings)
    network, _, report = quantize(
        model, settings.quantization(), batches, source="--calibration_file=FILE"
    )
    return network, report


def calibration_batches(model: Any, settings: Settings) -> list[dict[str, np.ndarray]]:
    """Return the first batches of `--calibration_file`; none if that is not set."""
    if not settings.calibration_file:
        return []
    windows = windows_of(model, settings.calibration_file, settings)
    batches = batches_of(windows, settings.batch_size)
    return [inputs_of(ids) for ids in itertools.islice(batches, settings.calibration_steps)]


def summary(settings: Settings, figures: dict[str, Any]) -> dict[str, Any]:
    """Return the last line of stdout: perplexities, and where the rest is."""
    result: dict[str, Any] = {}
    for network in ("float", "quantized"):
        if network in figures:
            result |= {
                f"{network}_{name}": figures[network][name]
                for name in ("perplexity", "token_perplexity")
            }
    if settings.output_dir:
        result["results"] = os.path.join(settings.output_dir, "results.json")
    return result | {name: figures[name] for name in ("sweep",) if name in figures}


def table(figures: dict[str, Any]) -> str:
    """Return perplexities of both networks as a table."""
    rows = []
    for name in ("float", "quantized"):
        if name in figures:
            one = figures[name]
            loss = one["perplexity"] - figures["float"]["perplexity"]
            rows.append(
                [
                    one.get("recipe", "float"),
                    str(one.get("sites", 0)),
                    f"{one['perplexity']:.4f}",
                    f"{loss:+.4f}",
                    f"{one['token_perplexity']:.4f}",
                    f"{one['seconds']:.1f}",
                ]
            )
    columns = ["network", "sites", "perplexity", "difference", "by token", "seconds"]
    return render(build(None, columns, rows, left=["network"]))
