"""A run of run_glue.py over its tasks and seeds."""

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

import tfquant
from runs.batches import only
from runs.eight_bit import add_lora, merge_lora
from runs.glue import incremental, networks, overwriting, setting_checks, sweep
from runs.glue.data import INPUTS, LABELS, features_of, training_plan
from runs.glue.evaluation import Validation
from runs.glue.exporting import export
from runs.glue.histograms import write_graph, write_histograms
from runs.glue.input_checks import check_inputs
from runs.glue.losses import loss_of
from runs.glue.outputs import logs_of, size_of, summary_of, tell, write_results, write_scores
from runs.glue.quantizing import quantized, recipe_of, round_weights, trained
from runs.glue.settings import Settings
from runs.glue.training import train
from runs.histograms import BATCHES, record_histograms
from runs.ranks import output_of, start_ranks
from runs.resume import last_checkpoint
from runs.settings import checked
from tasks import glue
from tfquant.distributed.group import Group
from tfquant.intermediate_outputs import tap
from tfquant.store import holds_ranges


def run(settings: Settings) -> dict[str, Any]:
    """Run all tasks with all seeds."""
    setting_checks.check(settings)
    runs = runs_of(settings)
    check_inputs(list(runs.values()))
    if not settings.cuda:
        tf.config.set_visible_devices([], "GPU")
    group = start_ranks(settings, "run_glue.py")
    if settings.sweep:
        return sweep.sweep(settings, group, runs_of, run_task)
    finals: dict[str, dict[int, float]] = {}
    for (name, seed), own in runs.items():
        with output_of(group, own.output_dir):
            final = run_task(glue.TASKS[name], own, group, directory=own.output_dir, seed=seed)
        if final is not None:
            finals.setdefault(name, {})[seed] = final
    result = summary_of(finals)
    if group.rank == 0:
        tell(result, settings.output_dir if len(runs) > 1 else None)
    return result


def runs_of(settings: Settings) -> dict[tuple[str, int], Settings]:
    """Return (task, seed) -> settings of that run, with its own folders where there are several."""
    runs = {}
    for task in settings.tasks:
        for seed in settings.seed:
            below = ([task] if len(settings.tasks) > 1 else []) + (
                [f"seed_{seed}"] if len(settings.seed) > 1 else []
            )
            output = settings.output_dir and os.path.join(settings.output_dir, *below)
            logs = settings.tb_logging_dir and os.path.abspath(
                os.path.join(settings.tb_logging_dir, *below)
            )
            runs[task, seed] = dataclasses.replace(
                settings, task=(task,), seed=(seed,), output_dir=output, tb_logging_dir=logs
            )
    return runs


def run_task(
    task: glue.Task, settings: Settings, group: Group, *, directory: str | None, seed: int
) -> float | None:
    """Run one task with one seed; return its final score, None where nothing is scored."""
    keras.utils.set_random_seed(seed)
    if settings.trains and group.rank == 0 and settings.overwrite_output:
        overwriting.start_over(checked(directory), settings, group.size)
    group.gather(
        b""
    )  # no rank looks for checkpoints before rank 0 has removed those of an earlier run
    source = networks.folder_of(task, settings)
    tokenizer = glue.load_tokenizer(source)
    model = networks.build(source, task, settings, seed)
    figures: dict[str, Any] = {"source": source, "task": task.name, "seed": seed}
    training_rows = functools.cache(
        lambda: features_of(task, "train", tokenizer, settings)
    )  # what wants them shares them
    network = model
    if settings.quantizes:
        network, result = quantized_network(
            model, source, training_rows, settings, group, directory, seed
        )
        figures |= result
        add_lora(network, settings, seed)
    elif not (settings.trains and last_checkpoint(checked(directory))):
        networks.load_float(model, source, new_head=settings.trains)
    validation = Validation(network, task, tokenizer, settings, group, clamp=settings.quantizes)
    if settings.trains:
        figures["training"] = train(
            model,
            network,
            training_rows(),
            task,
            settings,
            group,
            source=source,
            validation=validation,
            directory=checked(directory),
            seed=seed,
        )
    if network is not model:
        merge_lora(network)
    if settings.record_histogram:
        figures["exponents"] = record(
            network, task, validation, training_rows, settings, group, checked(directory), seed
        )
    if network is not model and group.rank == 0:
        figures["size"] = size_of(network)
    if settings.tb and group.rank == 0:
        show(network, validation, settings, logs_of(directory, settings), figures)
    if directory is not None and group.rank == 0 and settings.save_model:
        networks.save(model, network, task, source, directory)
    if settings.export and group.rank == 0:
        figures["export"] = export(network, task, tokenizer, settings, checked(directory))
    final = None
    if settings.do_eval or not settings.trains:
        figures["scores"] = validation.scores()
        figures["final_score"] = final = glue.final_score(task, figures["scores"])
    if directory is not None and group.rank == 0:
        if final is not None:
            write_scores(directory, task, figures["scores"], final)
        write_results(directory, settings, figures)
    return final


def show(
    network: Any, validation: Validation, settings: Settings, folder: str, figures: dict[str, Any]
) -> None:
    """Write the TensorBoard files of --tb and --tb-graph."""
    tapped, step = (
        tap(network, differentiable=False),
        figures["training"]["last_step"] if settings.trains else 0,
    )
    write_histograms(tapped, validation.first_batch(), folder, step, progress=settings.tqdm)
    if settings.tb_graph:
        write_graph(tapped, folder)


def record(
    network: Any,
    task: glue.Task,
    validation: Validation,
    training_rows: Callable[[], glue.Features],
    settings: Settings,
    group: Group,
    directory: str,
    seed: int,
) -> dict[str, Any]:
    """Record the exponents of a network: of training with its gradients, or of validation."""
    if not settings.trains:
        batches = [only(batch, INPUTS) for batch in validation.first_batches(BATCHES)]
        return record_histograms(network, batches, None, directory, group)
    features = training_rows()
    planned = training_plan(features, min(settings.batch_size, len(features)), settings, 0, seed)
    batches = [only(planned[n], INPUTS + LABELS) for n in range(min(BATCHES, len(planned)))]
    return record_histograms(network, batches, loss_of(task), directory, group)


def quantized_network(
    model: keras.Model,
    source: str,
    training_rows: Callable[[], glue.Features],
    settings: Settings,
    group: Group,
    directory: str | None,
    seed: int,
) -> tuple[Any, dict[str, Any]]:
    """Return the quantized network, and figures of its quantization.

    It is loaded from the run that is resumed or from a model with ranges, else calibrated.
    """
    saved = last_checkpoint(checked(directory)) if settings.trains else None
    if saved:
        return tfquant.load(saved, model), {"ranges": {"loaded": saved}}
    if holds_ranges(networks.weights_of(source)) and not settings.requantize:
        setting_checks.refuse_quantization_options(settings, source)
        return tfquant.load(networks.weights_of(source), model), {"ranges": {"loaded": source}}
    networks.load_float(model, source, new_head=settings.trains_new_head)
    if settings.inq_mode and settings.trains:
        network = tfquant.quantize(model, incremental.recipe_of(settings))
        return network, {"ranges": {"recipe": network.recipe.to_dict()}}
    recipe = recipe_of(model, settings)
    if settings.eight_bit:
        network = tfquant.quantize(model, recipe)
        if not settings.trains and network.quantizers and not network.calibrated:
            network, ranges = quantized(model, recipe, training_rows, settings, group, seed)
            return network, {"ranges": ranges}
        return network, {"ranges": {"recipe": recipe.to_dict()}}
    if settings.trains:
        recipe = trained(recipe, settings)
    network, ranges = quantized(model, recipe, training_rows, settings, group, seed)
    figures = {"ranges": ranges}
    if settings.adaround or settings.gptq:
        method = "gptq" if settings.gptq else "adaround"
        folder = (
            os.path.join(directory, method) if directory is not None and group.rank == 0 else None
        )
        figures[method] = round_weights(network, training_rows(), settings, group, seed, folder)
    return network, figures
