"""Fine-tunes, calibrates, quantizes and evaluates BERT on SQuAD.

    python run_squad.py                       a small example from data to quantized accuracy, on data it makes itself
    python run_squad.py --help                all flags, see docs/squad.md

A run does, in this order and as its flags say: calibration (--do_calib) or training (--do_train), export (--do_export), then
prediction (--do_predict). What it leaves in --output_dir: model.ckpt-<step>, model.ckpt-calibrated and the calibration file,
model.onnx or another exported file, predictions.json, nbest_predictions.json (null_odds.json for SQuAD 2.0), results.json,
tensorboard/.
"""

import dataclasses
import importlib.metadata
import importlib.util
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
if not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "10")  # seconds; a bar in a file is a line at each

import keras
from absl import app
from absl import flags as absl_flags

import modeling
from runs.errors import EXPECTED, describe
from runs.narration import say, speak_for
from runs.ranks import agree_on_settings, output_of
from runs.stopping import end_on_signals
from runs.versions import versions
from squad_run import demo, flag_checks, flags
from squad_run.calibration import calibrate
from squad_run.exporting import export, file_forward, file_to_predict_with
from squad_run.flags import Settings
from squad_run.input_checks import check_inputs
from squad_run.networks import build, load_for_prediction
from squad_run.prediction import forward_of, predict
from squad_run.training import train
from tasks import squad
from tasks.files import write_json
from tfquant import distributed
from tfquant.host_memory import keep_freed_memory

HELP = ("help", "helpfull", "helpshort", "helpxml", "?")


def run(settings: Settings) -> dict[str, Any]:
    """One run as the settings say. Returns the figures that results.json holds."""
    flag_checks.check(settings)
    sending = settings.horovod_compression, settings.horovod_sparse_as_dense
    group = distributed.start(settings.horovod, *sending, timeout=settings.rank_timeout)
    speak_for(group.rank)
    agree_on_settings(group, "run_squad.py", settings)
    check_inputs(settings)
    with output_of(group, settings.output_dir):
        return _run(settings, group)


def _run(settings: Settings, group: distributed.Group) -> dict[str, Any]:
    """What `run` does once the ranks agree and the output folder is held."""
    if settings.do_calib and settings.do_train:
        say("--do_calib given: this run only calibrates. Train in a second run, from its model.ckpt-calibrated")
    keras.utils.set_random_seed(settings.seed)
    config = modeling.BertConfig.from_json_file(settings.bert_config_file)
    tokenizer = squad.Tokenizer(settings.vocab_file, lower_case=settings.do_lower_case)
    model = build(config, settings)
    network, step, figures = None, 0, {}
    if settings.do_calib:
        network, figures["calibration"] = calibrate(model, tokenizer, settings, group)
    elif settings.do_train:
        network, step, figures["training"] = train(model, config, tokenizer, settings, group)
    in_this_process = settings.do_predict and settings.predict_with == "tensorflow"
    if network is None and (settings.do_export or in_this_process):
        network, step = load_for_prediction(model, settings)
    if not settings.if_quant:
        network = model  # the float network, whatever ranges there are
    if settings.do_export:
        figures["export"] = export(network, tokenizer, settings, group)
    if settings.do_predict:
        forward = forward_of(network) if in_this_process else file_forward(file_to_predict_with(settings), settings.predict_with)
        figures["prediction"] = predict(forward, step, tokenizer, settings, group)
    if group.rank == 0:
        write_json(os.path.join(settings.output_dir, "results.json"), report(settings, figures))
    return figures


def report(settings: Settings, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Everything it takes to know what a result is of."""
    more = ["horovod"] if settings.horovod and importlib.util.find_spec("horovod") else []
    return {"flags": dataclasses.asdict(settings), "versions": versions(*more), "figures": figures}


def main(_: list[str]) -> None:
    end_on_signals("run_squad.py")
    keep_freed_memory()
    verbose = flags.from_flags().verbose_logging
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    try:
        if len(sys.argv) == 1:
            demo.demo(run)
        else:
            run(flags.from_flags())
    except KeyboardInterrupt:
        sys.exit("run_squad.py: interrupted; the same command goes on from the last checkpoint")
    except EXPECTED as error:
        if verbose:
            raise
        headline = "these flags cannot be followed:\n" if isinstance(error, flags.FlagError) else ""
        sys.exit(f"run_squad.py: {headline}{describe(error)}")


def parse(arguments: list[str]) -> list[str]:
    """absl's parsing of the command line, which ends with status 1 after it has shown its help; here that is 0."""
    arguments = ["--help" if word == "-h" else word for word in arguments]
    try:
        return app.parse_flags_with_usage(arguments)
    except SystemExit:
        if any(word.lstrip("-").partition("=")[0] in HELP for word in arguments[1:] if word.startswith("-")):
            sys.exit(0)
        raise


def define_flags() -> None:
    """Define the flags, once."""
    if "bert_config_file" not in absl_flags.FLAGS:
        flags.define()
        absl_flags.adopt_module_key_flags(flags)  # --help shows them
        app.define_help_flags()


def command() -> None:
    """Run the script, as `python run_squad.py` and `tfquant-squad` do."""
    define_flags()
    app.run(main, flags_parser=parse)


if __name__ == "__main__":
    command()
