"""Fine-tunes, calibrates, quantizes and evaluates BERT on SQuAD.

    python run_squad.py                       a small example from data to quantized accuracy, on data it makes itself
    python run_squad.py --help                all flags; README.md has the recipes

A run does, in this order and as its flags say: calibration (--do_calib) or training (--do_train), then prediction
(--do_predict). What it leaves in --output_dir: model.ckpt-<step>, model.ckpt-calibrated and the calibration file,
predictions.json, nbest_predictions.json (null_odds.json for SQuAD 2.0), results.json, tensorboard/.
"""

import dataclasses
import importlib.metadata
import itertools
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags
from tqdm import tqdm

import modeling
import squad_demo
import squad_flags
import tfquant
from squad_evaluate import evaluate
from squad_flags import TFDS, Settings
from tasks import squad
from tasks.files import write_json
from tfquant import checkpoint, distributed, store
from tfquant.training import (
    BertAdamW,
    NonFiniteLossError,
    Trainer,
    TrainOptions,
    WarmupLinearDecay,
    divergence,
    seed_variables,
)

INPUTS = ("input_ids", "input_mask", "segment_ids")
LABELS = ("start_positions", "end_positions")
# Shown without a trace.
EXPECTED = (
    ValueError, OSError, ModuleNotFoundError,
    NonFiniteLossError, tfquant.UncalibratedError, distributed.DivergedError,
)  # fmt: skip
PACKAGES = ("tfquant", "tensorflow", "keras", "numpy", "tokenizers")

Batch = Mapping[str, Any]


def run(settings: Settings) -> dict[str, Any]:
    """One run as the settings say. Returns the figures that results.json holds."""
    squad_flags.check(settings)
    if settings.do_calib and settings.do_train:
        say("--do_calib given: this run only calibrates. Train in a second run, from its model.ckpt-calibrated")
    group = distributed.start(settings.horovod, settings.horovod_compression)
    keras.utils.set_random_seed(settings.seed)
    config = modeling.BertConfig.from_json_file(settings.bert_config_file)
    tokenizer = squad.Tokenizer(settings.vocab_file, lower_case=settings.do_lower_case)
    model = build(config, settings)
    network, step, figures = None, 0, {}
    if settings.do_calib:
        network, figures["calibration"] = calibrate(model, tokenizer, settings, group)
    elif settings.do_train:
        network, step, figures["training"] = train(model, config, tokenizer, settings, group)
    if group.rank:
        return figures  # rank 0 predicts and writes
    if settings.do_predict:
        network, step = (network, step) if network is not None else load_for_prediction(model, settings)
        if not settings.if_quant:
            network = model  # the float network, whatever ranges there are
        figures["prediction"] = predict(network, step, tokenizer, settings)
    write_json(os.path.join(settings.output_dir, "results.json"), report(settings, figures))
    return figures


def build(config: modeling.BertConfig, settings: Settings, *, dropout: bool = True) -> keras.Model:
    dtype = "mixed_bfloat16" if settings.use_bf16 else "float32"
    return modeling.build_squad_model(config, dropout=dropout, seed=settings.seed, dtype=dtype)


def report(settings: Settings, figures: Mapping[str, Any]) -> dict[str, Any]:
    """Everything it takes to know what a result is of."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}
    return {"flags": dataclasses.asdict(settings), "versions": versions, "figures": figures}


def say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


# --- Data ---------------------------------------------------------------------------------------------------------


def read_examples(path: str, settings: Settings, *, training: bool) -> list[squad.SquadExample]:
    if path.startswith(TFDS):
        return squad.from_tfds(
            path.removeprefix(TFDS), settings.tfds_dir, training=training, version_2=settings.version_2_with_negative
        )
    return squad.read_squad(path, training=training, version_2=settings.version_2_with_negative)


def to_features(examples: list[squad.SquadExample], tokenizer: squad.Tokenizer, settings: Settings, *, training: bool):
    features = squad.convert(
        examples,
        tokenizer,
        training=training,
        max_seq_length=settings.max_seq_length,
        doc_stride=settings.doc_stride,
        max_query_length=settings.max_query_length,
    )
    if settings.verbose_logging:
        for row in range(min(3, len(features))):
            say(f"window {row}: {' '.join(tokenizer.decode_ids(features.input_ids[features.window(row)]))}")
    return features


def only(batch: Batch, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: batch[name] for name in names}


# --- Checkpoints --------------------------------------------------------------------------------------------------


def holds_ranges(path: str) -> bool:
    """Whether a checkpoint was written with a recipe and ranges; Hugging Face folders never are."""
    return os.path.isfile(path + checkpoint.INDEX) and store.RECIPE in checkpoint.read(path)


def load_float(model: keras.Model, path: str, settings: Settings, *, new_head: bool = False) -> None:
    """Loads weights by name; the head may be new when it is about to be trained."""
    loaded = modeling.load_weights(model, path, allow_missing=("cls/squad/",) if new_head else ())
    say(f"loaded {len(loaded.loaded)} variables from {path}")
    if loaded.missing:
        say(f"new, not in the checkpoint: {', '.join(loaded.missing)}")
    if settings.verbose_logging:
        say(f"loaded: {', '.join(loaded.loaded)}\nleft over: {', '.join(loaded.unexpected) or 'none'}")


def load_quantized(model: keras.Model, path: str, settings: Settings, *, training: bool = False) -> Any:
    """Loads weights, recipe and ranges, and checks that they are of the placement that was asked for."""
    if not holds_ranges(path):
        raise ValueError(
            f"--if_quant: {path} holds no ranges. Calibrate it first: run with --do_calib and start from the "
            "model.ckpt-calibrated of that run, or give --do_calib here as well"
        )
    network = tfquant.load(path, model, change=settings.for_training if training else lambda recipe: recipe)
    if settings.asks_for_placement and network.recipe.name != settings.recipe.name:
        raise ValueError(
            f"{path} was calibrated for placement {network.recipe.name}, the flags ask for {settings.recipe.name}: "
            "leave --quant_recipe, --quant_mode, --quantize_residual and --quant_another_add_input out, or calibrate again"
        )
    say(f"loaded weights and {len(network.plan.sites)} ranges ({network.recipe.name}) from {path}")
    return network


def load_for_prediction(model: keras.Model, settings: Settings) -> tuple[Any, int]:
    """The latest checkpoint of the output folder or, where there is none, the one to start from; and its step."""
    path = checkpoint.latest(settings.output_dir) or settings.init_checkpoint
    if not path:
        raise ValueError(
            f"nothing to predict with: {settings.output_dir} holds no checkpoint. Give --init_checkpoint, or --do_train"
        )
    if settings.if_quant:
        return load_quantized(model, path, settings), step_of(path)
    load_float(model, path, settings)
    return model, step_of(path)


def step_of(path: str) -> int:
    number = path.rpartition("-")[2]
    return int(number) if number.isdigit() else 0


# --- Calibration --------------------------------------------------------------------------------------------------


def calibrate(
    model: keras.Model, tokenizer: squad.Tokenizer, settings: Settings, group: distributed.Group
) -> tuple[Any, dict[str, Any]]:
    """Ranges for every site from the float network on part of the training data, saved with the weights."""
    source = settings.init_checkpoint or checkpoint.latest(settings.output_dir)
    if not source:
        raise ValueError(f"nothing to calibrate: give --init_checkpoint ({settings.output_dir} holds no checkpoint)")
    load_float(model, source, settings, new_head=not settings.do_predict)
    batches = calibration_batches(tokenizer, settings)
    recipe = settings.recipe
    started = time.perf_counter()
    network = tfquant.quantize(model, recipe)
    planned = time.perf_counter()
    if settings.verbose_logging:
        say(str(network.plan))
    calibration = tfquant.calibrate(network, batches, mask="input_mask", group=group)
    seconds = time.perf_counter() - planned
    prefix = os.path.join(settings.output_dir, "model.ckpt-calibrated")
    if group.rank == 0:
        calibration.save(os.path.join(settings.output_dir, settings.calibrator_file))
        tfquant.save(network, prefix)
    windows = sum(len(batch["input_ids"]) for batch in batches)
    say(f"calibrated {len(calibration)} sites on {windows} windows; wrote {prefix}")
    return network, {
        "source": source,
        "checkpoint": prefix,
        "recipe": recipe.name,
        "methods": sorted({str(site.method) for site in calibration.values()}),
        "sites": len(calibration),
        "edges": sum(len(site.members) for site in network.plan.sites),
        "windows": windows,
        "plan_seconds": planned - started,
        "seconds": seconds,
        "windows_per_second": windows / seconds,
    }


def calibration_batches(tokenizer: squad.Tokenizer, settings: Settings) -> list[dict[str, np.ndarray]]:
    """Batches of windows of questions drawn at random; only those are turned into windows."""
    examples = read_examples(settings.train_file, settings, training=True)
    wanted = settings.calib_batch * settings.train_batch_size
    if len(examples) < wanted:
        raise ValueError(
            f"--calib_batch={settings.calib_batch} of --train_batch_size={settings.train_batch_size} need {wanted} "
            f"questions, {settings.train_file} has {len(examples)}: lower one of them"
        )
    drawn = np.random.default_rng(settings.seed).permutation(len(examples))[:wanted]
    features = to_features([examples[i] for i in drawn], tokenizer, settings, training=True)
    found = squad.batches(features, settings.train_batch_size, training=True, seed=settings.seed)
    return [only(batch, INPUTS) for batch in itertools.islice(found, settings.calib_batch)]


# --- Training -----------------------------------------------------------------------------------------------------


def train(
    model: keras.Model, config: modeling.BertConfig, tokenizer: squad.Tokenizer, settings: Settings, group: distributed.Group
) -> tuple[Any, int, dict[str, Any]]:
    """Trains up to the last step, from the output folder's last checkpoint if there is one."""
    saved = checkpoint.steps(settings.output_dir)
    source = saved[-1][1] if saved else settings.init_checkpoint
    network, write = model, checkpoint.write
    if settings.if_quant:
        if not source:
            raise ValueError("--do_train with --if_quant starts from a calibrated checkpoint: give --init_checkpoint")
        network = load_quantized(model, source, settings, training=True)

        def write(prefix: str, tensors: Mapping[str, Any]) -> None:
            tfquant.save(network, prefix, extra=tensors)

    elif source and not saved:
        load_float(model, source, settings, new_head=True)
    elif not source:
        say("no --init_checkpoint: training starts from random weights")
    examples = read_examples(settings.train_file, settings, training=True)
    features = to_features(examples, tokenizer, settings, training=True)
    per_step = settings.train_batch_size * settings.num_accumulation_steps * group.size
    total = int(len(examples) / per_step * settings.num_train_epochs)
    if total < 1:
        raise ValueError(
            f"{len(examples)} questions for {settings.num_train_epochs} epochs do not make one step of {per_step}: "
            "raise --num_train_epochs, or lower --train_batch_size or --num_accumulation_steps"
        )
    loss = squad_loss
    if settings.distillation:
        loss = distillation_loss(load_teacher(config, settings), settings.distillation_loss_scale)
    group.broadcast(network.variables)
    trainer = Trainer(
        network,
        loss,
        BertAdamW(WarmupLinearDecay.from_proportion(settings.learning_rate * group.size, total, settings.warmup_proportion)),
        TrainOptions(
            settings.output_dir,
            total,
            accumulation=settings.num_accumulation_steps,
            checkpoint_every=settings.save_checkpoints_steps,
            keep_checkpoints=settings.keep_checkpoint_max,
        ),
        weights=model.weights,
        seeds=seed_variables(model),
        write=write,
        group=group,
    )
    if saved:
        say(f"going on from step {trainer.restore()} of {total} ({saved[-1][1]})")
    summary = trainer.fit(lambda start: training_batches(features, settings, start, group))
    if summary.first_step < summary.last_step:
        say(f"trained {summary.last_step - summary.first_step} steps, {summary.examples_per_second:.1f} examples/s")
    figures = dataclasses.asdict(summary)
    return network, summary.last_step, {"source": source, **figures}


def training_batches(
    features: squad.Features, settings: Settings, start: int, group: distributed.Group
) -> Iterator[dict[str, np.ndarray]]:
    """Epoch after epoch without end, from batch number `start` on; this rank's share of each batch of the whole group."""
    size, seed = settings.train_batch_size * group.size, settings.seed
    epoch, skipped = divmod(start, len(squad.batches(features, size, training=True, seed=seed)))
    while True:
        whole = squad.batches(features, size, training=True, seed=seed, epoch=epoch, start=skipped)
        for batch in whole.shard(group.rank, group.size):
            yield only(batch, INPUTS + LABELS)
        epoch, skipped = epoch + 1, 0


def squad_loss(model: Any, batch: Batch) -> tf.Tensor:
    """Mean of the cross-entropies of start and end over the positions of a window, padding left out."""
    outputs = model(only(batch, INPUTS), training=True)
    return hard_loss(outputs, batch)


def hard_loss(outputs: Batch, batch: Batch) -> tf.Tensor:
    losses = [
        tf.nn.sparse_softmax_cross_entropy_with_logits(batch[f"{end}_positions"], real_logits(outputs, end, batch))
        for end in ("start", "end")
    ]
    return tf.reduce_mean(tf.stack(losses))


def real_logits(outputs: Batch, end: str, batch: Batch) -> tf.Tensor:
    """[B, S] logits, so low on padding that it has no share: else a loss would depend on how far a batch is padded."""
    return tf.where(batch["input_mask"] > 0, tf.cast(outputs[f"{end}_logits"], tf.float32), -1e9)


def distillation_loss(teacher: keras.Model, scale: float) -> Callable[[Any, Batch], tf.Tensor]:
    """Adds `scale` times the divergence from the teacher's answers, start and end added up."""

    def loss(model: Any, batch: Batch) -> tf.Tensor:
        outputs = model(only(batch, INPUTS), training=True)
        taught = teacher(only(batch, INPUTS), training=False)
        soft = [divergence(*(real_logits(o, end, batch) for o in (outputs, taught))) for end in ("start", "end")]
        return hard_loss(outputs, batch) + scale * tf.add_n(soft)

    return loss


def load_teacher(config: modeling.BertConfig, settings: Settings) -> keras.Model:
    teacher = build(config, settings, dropout=False)
    teacher.trainable = False
    load_float(teacher, settings.teacher, settings)
    return teacher


# --- Prediction ---------------------------------------------------------------------------------------------------


def predict(network: Any, step: int, tokenizer: squad.Tokenizer, settings: Settings) -> dict[str, Any]:
    """Answers the predict file, writes the answers, and scores them where the truth is known."""
    examples = read_examples(settings.predict_file, settings, training=False)
    if settings.num_eval_iterations is not None:
        examples = examples[: settings.num_eval_iterations * settings.predict_batch_size]
    features = to_features(examples, tokenizer, settings, training=False)
    scores, speed = window_logits(network, features, settings)
    found = squad.decode(
        examples,
        scores,
        n_best_size=settings.n_best_size,
        max_answer_length=settings.max_answer_length,
        version_2=settings.version_2_with_negative,
        null_score_diff_threshold=settings.null_score_diff_threshold,
    )
    found.write(settings.output_dir)
    figures = {"questions": len(examples), "windows": len(features), "step": step} | speed
    if any(example.answers for example in examples):
        version = "v2.0" if settings.version_2_with_negative else "1.1"
        figures |= evaluate(squad.to_dataset(examples, version=version), found.answers)
        say(json.dumps({name: figures[name] for name in figures if name.startswith(("exact", "f1"))}))
    writer = tf.summary.create_file_writer(os.path.join(settings.output_dir, "tensorboard"))
    with writer.as_default(step=step):
        for name, value in figures.items():
            if name != "step":
                tf.summary.scalar(f"predict/{name}", value)
    writer.close()
    return figures


def window_logits(network: Any, features: squad.Features, settings: Settings) -> tuple[squad.RawScores, dict[str, Any]]:
    """Logits of all windows, and how long the batches took. The first two do not count, they trace the network."""
    signature = {name: tf.TensorSpec([None, None], tf.int32) for name in INPUTS}
    forward = tf.function(
        lambda inputs: network(inputs, training=False), input_signature=[signature], autograph=False, jit_compile=False
    )
    scores, seconds, sizes = squad.RawScores(features), [], []
    batches = squad.batches(features, settings.predict_batch_size, training=False)
    with tqdm(total=len(features), desc="predict", unit=" examples") as bar:
        for batch in batches:
            started = time.perf_counter()
            outputs = forward(only(batch, INPUTS))
            start, end = outputs["start_logits"].numpy(), outputs["end_logits"].numpy()
            seconds.append(time.perf_counter() - started)
            sizes.append(len(start))
            scores.add(batch["unique_ids"], start, end)
            bar.update(len(start))
    first = 2 if len(seconds) > 2 else 0
    speed = {"predict_seconds": sum(seconds), "examples_per_second": sum(sizes[first:]) / sum(seconds[first:])}
    speed["latency_ms_average"] = 1000 * float(np.mean(seconds[first:]))
    for percent in (50, 90, 95, 99, 100):
        speed[f"latency_ms_{percent}"] = 1000 * float(np.percentile(seconds[first:], percent, method="higher"))
    return scores, speed


def main(_: list[str]) -> None:
    verbose = squad_flags.from_flags().verbose_logging
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    try:
        if len(sys.argv) == 1:
            squad_demo.demo(run)
        else:
            run(squad_flags.from_flags())
    except KeyboardInterrupt:
        sys.exit("run_squad.py: interrupted; the same command goes on from the last checkpoint")
    except EXPECTED as error:
        if verbose:
            raise
        headline = "these flags cannot be followed:\n" if isinstance(error, squad_flags.FlagError) else ""
        sys.exit(f"run_squad.py: {headline}{error}")


if __name__ == "__main__":
    squad_flags.define()
    flags.adopt_module_key_flags(squad_flags)  # --help shows them
    app.run(main)
