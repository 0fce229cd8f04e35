"""A run of run_squad.py from its settings to its figures."""

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Mapping
from typing import Any

import keras

import modeling
from runs.logging import log
from runs.networks import inference_graph
from runs.ranks import output_of, start_ranks
from runs.squad import demo, flag_checks
from runs.squad.calibration import calibrate
from runs.squad.exporting import export, file_to_predict_with
from runs.squad.flags import Settings
from runs.squad.histograms import record
from runs.squad.input_checks import check_inputs
from runs.squad.networks import build, load_float, load_for_prediction
from runs.squad.prediction import forward_of, predict
from runs.squad.sweep import sweep
from runs.squad.training import train
from runs.versions import versions
from tasks import squad
from tasks.files import write_json
from tfquant.distributed.group import Group
from tfquant.runtimes import open_file


def run(settings: Settings) -> dict[str, Any]:
    """Run with the settings; return the figures that results.json holds."""
    flag_checks.check(settings)
    if settings.eight_bit:
        settings = dataclasses.replace(settings, if_quant=True)
    group = start_ranks(settings, "run_squad.py")
    check_inputs(settings)
    with output_of(group, settings.output_dir):
        return _run(settings, group)


def _run(settings: Settings, group: Group) -> dict[str, Any]:
    """Run once the ranks agree and the output folder is held."""
    if settings.do_calib and settings.do_train:
        log(
            "--do_calib given: this run only calibrates. Train in a second run, from its"
            " model.ckpt-calibrated"
        )
    keras.utils.set_random_seed(settings.seed)
    config = modeling.config_from_file(settings.bert_config_file)
    tokenizer = squad.load_tokenizer(settings.vocab_file, lower_case=settings.do_lower_case)
    model = build(config, settings)
    network, step, figures = None, 0, {}
    if settings.sweep:
        load_float(model, settings.init_checkpoint or "", settings)
        figures["sweep"] = sweep(model, tokenizer, settings, group)
    elif settings.do_calib:
        network, figures["calibration"] = calibrate(model, tokenizer, settings, group)
    elif settings.do_train:
        network, step, figures["training"] = train(model, config, tokenizer, settings, group)
    in_this_process = settings.do_predict and settings.predict_with == "tensorflow"
    needed = settings.do_export or in_this_process or settings.record_histogram
    if network is None and needed:
        network, step = load_for_prediction(model, settings)
    if not settings.if_quant:
        network = model  # the float network, whatever ranges there are
    if settings.record_histogram:
        figures["exponents"] = record(network, tokenizer, settings, group)
    if settings.do_export:
        figures["export"] = export(network, tokenizer, settings, group)
    if settings.do_predict:
        session = (
            inference_graph(network)
            if in_this_process
            else open_file(file_to_predict_with(settings), settings.predict_with)
        )
        figures["prediction"] = predict(forward_of(session), step, tokenizer, settings, group)
    if group.rank == 0:
        write_json(os.path.join(settings.output_dir, "results.json"), report(settings, figures))
    return figures


def report(settings: Settings, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of results.json: flags, versions and figures."""
    more = ["horovod"] if settings.horovod and importlib.util.find_spec("horovod") else []
    return {"flags": dataclasses.asdict(settings), "versions": versions(*more), "figures": figures}


def summary(settings: Settings, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return the last line of stdout.

    The scores, or where the figures are if nothing was scored.
    """
    prediction = figures.get("prediction", {})
    scores = {name: prediction[name] for name in prediction if name.startswith(("exact", "f1"))}
    if "sweep" in figures:
        scores = {
            format: {level: one["f1"] for level, one in levels.items()}
            for format, levels in figures["sweep"].items()
        }
    return scores or {"results": os.path.join(settings.output_dir, "results.json")}


def main(settings: Settings | None) -> dict[str, Any]:
    """Run the script. Returns its last line.

    Args:
        settings: None for the embedded example.
    """
    verbose = settings is not None and settings.verbose_logging
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if settings is None:
        return demo.demo(run)
    return summary(settings, run(settings))
