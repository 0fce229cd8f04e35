"""Training of a float or quantized network on SQuAD, in one or several processes, resumed where it stopped."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

import modeling
import tfquant
from squad_run.data import INPUTS, LABELS, only, read_examples, to_features
from squad_run.flags import Settings
from squad_run.losses import distillation, squad_loss
from squad_run.narration import say
from squad_run.networks import load_float, load_quantized
from tasks import squad
from tfquant import checkpoint, distributed
from tfquant.training import (
    BertAdamW,
    QuantizationSchedule,
    Trainer,
    TrainOptions,
    TrainSummary,
    WarmupLinearDecay,
    seed_variables,
)


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
        network.share_ranges(group)

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
    loss, projections = squad_loss, []
    if settings.distillation:
        loss = distillation(network, config, settings)
        projections = loss.variables
    group.broadcast([*network.variables, *projections])
    optimizer = BertAdamW(
        WarmupLinearDecay.from_proportion(settings.learning_rate * group.size, total, settings.warmup_proportion)
    )
    trainer = Trainer(
        network,
        loss,
        optimizer,
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
        hooks=[schedule(network, optimizer, total, settings)] if settings.if_quant else [],
        loss_variables=projections,
    )
    if saved:
        say(f"going on from step {trainer.restore()} of {total} ({saved[-1][1]})")
    summary = trainer.fit(lambda start: training_batches(features, settings, start, group))
    if summary.first_step < summary.last_step:
        say(closing_line(summary))
    figures = dataclasses.asdict(summary)
    return network, summary.last_step, {"source": source, **figures}


def closing_line(summary: TrainSummary) -> str:
    line = f"trained {summary.last_step - summary.first_step} steps, {summary.examples_per_second:.1f} examples/s"
    if summary.ranks == 1:
        return line
    return (
        f"{line} ({summary.total_examples_per_second:.1f} in all {summary.ranks} processes), "
        f"{100 * summary.allreduce_share:.1f} % of the time in all-reduce"
    )


def schedule(network: Any, optimizer: BertAdamW, total: int, settings: Settings) -> QuantizationSchedule:
    """When quantization begins, and when and how fast ranges move, as the flags say."""
    for name in ("quant_start_step", "range_start_step"):
        if getattr(settings, name) >= total:
            raise ValueError(f"--{name}={getattr(settings, name)} is never reached: this run has {total} steps; lower it")
    rate = settings.range_learning_rate
    return QuantizationSchedule(
        network,
        optimizer,
        quant_start_step=settings.quant_start_step,
        range_start_step=settings.range_start_step,
        range_freeze_step=settings.range_freeze_step,
        range_rate=1.0 if rate is None else rate / settings.learning_rate,
    )


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
