"""Networks of a run: their folders, building, loading and saving, float or quantized."""

import dataclasses
import os
import pathlib
import shutil
from typing import Any

import keras

import modeling
import tfquant
from fileio.atomic import replacing
from fileio.messages import printable
from runs.glue.settings import ARCHITECTURES, HUB, Settings
from runs.logging import log
from runs.networks import load_weights
from runs.settings import checked
from tasks import glue
from tasks.files import read_json, write_json
from tfquant import checkpoint
from tfquant.store import holds_ranges

OUT, NAME, CONFIG = "out", "model.ckpt", "config.json"
TRAINED_ON = "finetuning_task"  # as Hugging Face's scripts name the task in a configuration
# What a model's folder holds beside its weights and its configuration.
COMPANIONS = ("vocab.txt", "vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


def folder_of(task: glue.Task, settings: Settings) -> str:
    """Return the folder that holds the model for a task.

    Raises:
        ValueError: none is named, there is none or more than one for the task, or it was trained on
          another.
    """
    folder = _folder(task, settings)
    trained = trained_on(folder)
    if settings.mode != "train-baseline" and trained in glue.TASKS and trained != task.name:
        raise ValueError(
            f"--task {task.name}: {folder}/{CONFIG} says the model was trained on {trained}: give"
            f" --task {trained}"
        )
    return folder


def _folder(task: glue.Task, settings: Settings) -> str:
    path = settings.model_path
    if path is None:
        if settings.model_name is None:
            raise ValueError(
                "no model: give --model-path (a folder with config.json, vocabulary and weights) or"
                " --model-name"
            )
        return from_hub(settings)
    result = place_of(path, "--model-path", task, settings)
    if result == path:
        _check_architecture(path, settings)
    return result


def place_of(path: str, named: str, task: glue.Task, settings: Settings) -> str:
    """Return the folder of a model: `path` itself, or what a run for the task with the seed left in
    it.

    Args:
        named: the option that `path` is from.

    Raises:
        FileNotFoundError, ValueError: there is no such folder, or none or more than one model for
          the task in it.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{named}={path}: there is no such folder")
    if os.path.isfile(os.path.join(path, CONFIG)):
        return path
    if settings.tasks == (task.name,) and os.path.isfile(os.path.join(path, OUT, CONFIG)):
        return os.path.join(path, OUT)
    below = [
        *pathlib.Path(path, task.name).glob(f"**/{OUT}"),
        *pathlib.Path(path).glob(f"seed_*/{OUT}"),
    ]
    result = sorted(str(place) for place in below if (place / CONFIG).is_file())
    of_seed = [place for place in result if f"seed_{settings.seed[0]}" in place.split(os.sep)]
    own = of_seed if len(result) > 1 else result
    if (
        settings.mode == "train-baseline" or len(own) != 1
    ):  # which may start from the model of any task
        one_of = "one of " if len(result) > 1 else ""
        hint = (
            f"name {one_of}{', '.join(result)}"
            if result
            else f"nor {OUT} or {task.name}/**/{OUT} with it: name a model's folder"
        )
        raise ValueError(
            f"{named}={path}: there is no {CONFIG} in it{'; ' if result else ', '}{hint}"
        )
    return own[0]


def check_head(folder: str, task: glue.Task, named: str) -> None:
    """Check that a model has weights and a head for the task.

    Args:
        named: what the folder is called in messages, such as `--teacher=FOLDER`.

    Raises:
        FileNotFoundError, ValueError: it lacks one of them, or scores another number of labels, or
          a file is damaged.
    """
    if not has_weights(folder):
        raise FileNotFoundError(
            f"{named}: no weights in it, neither model.safetensors nor {NAME}{checkpoint.INDEX}"
        )
    architecture = modeling.config_from_file(os.path.join(folder, CONFIG)).model_type
    labels = modeling.labels_in(weights_of(folder), architecture)
    if labels is None:
        raise ValueError(
            f"{named}: has no head for a task; train it first: train-baseline --task {task.name}"
        )
    if labels != task.num_labels:
        raise ValueError(
            f"{named}: scores {labels} labels and {task.name} has {task.num_labels}: take a model"
            " trained on it"
        )


def trained_on(folder: str) -> str:
    """Return the task that a folder's configuration names; empty if it names none."""
    return (
        str(read_json(os.path.join(folder, CONFIG), "model configuration").get(TRAINED_ON, ""))
        .lower()
        .replace("-", "")
    )


def _check_architecture(folder: str, settings: Settings) -> None:
    """Check that a folder holds the architecture of --model-name."""
    if settings.model_name is None:
        return
    named = ARCHITECTURES[settings.model_name]
    result = read_json(os.path.join(folder, CONFIG), "model configuration").get(
        "model_type", "bert"
    )
    if result != named:
        other = f"--model-path {folder} holds a {printable(result)}"
        raise ValueError(f"--model-name {settings.model_name} is a {named}, {other}: leave one out")


def from_hub(settings: Settings) -> str:
    """Return the folder with the files of --model-name, downloaded or cached."""
    import huggingface_hub  # which the tokenizers bring along

    name = HUB[checked(settings.model_name)]
    try:
        return huggingface_hub.snapshot_download(
            name, cache_dir=settings.cache_dir, allow_patterns=["*.json", "*.txt", "*.safetensors"]
        )
    except Exception as error:  # of many kinds: network, names, disk
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"--model-name={settings.model_name}: cannot get {name} ({reason}); give --model-path"
            " instead"
        ) from error


def build(folder: str, task: glue.Task, settings: Settings, seed: int) -> keras.Model:
    """Build the network of a folder's configuration, with a head for the task and random
    weights.
    """
    config = modeling.config_from_file(os.path.join(folder, CONFIG))
    changes = {
        "attention_probs_dropout_prob": settings.attn_dropout,
        "hidden_dropout_prob": settings.hidden_dropout,
    }
    config = dataclasses.replace(
        config, **{name: rate for name, rate in changes.items() if rate is not None}
    )
    dtype = "mixed_bfloat16" if settings.amp else "float64" if settings.double else "float32"
    return modeling.build_classifier(config, task.num_labels, seed=seed, dtype=dtype)


def weights_of(folder: str) -> str:
    """Return the path of a folder's weights: our checkpoint, or the folder with its safetensors."""
    prefix = os.path.join(folder, NAME)
    return prefix if os.path.isfile(prefix + checkpoint.INDEX) else folder


def has_weights(folder: str) -> bool:
    return weights_of(folder) != folder or bool(list(pathlib.Path(folder).glob("*.safetensors")))


def files_of(folder: str) -> list[str]:
    """Return the paths of the files that are read of a model's folder."""
    names = os.listdir(folder) if os.path.isdir(folder) else []
    own = [
        name
        for name in names
        if name in (CONFIG, *COMPANIONS) or name.startswith((f"{NAME}.", "model.safetensors"))
    ]
    return [os.path.join(folder, name) for name in own] + list(
        map(str, pathlib.Path(folder).glob("*.safetensors"))
    )


def load_float(model: keras.Model, folder: str, *, new_head: bool, who: str = "") -> None:
    """Load weights; for training the head may be new, and a folder without any weights gives random
    ones.

    Args:
        who: begins the line about it.

    Raises:
        FileNotFoundError, ValueError: there are none, or they do not fit.
    """
    path = weights_of(folder)
    if new_head and not has_weights(folder):
        log(f"no weights in {folder}: training starts from random ones")
        return
    unused = not who and holds_ranges(path)
    note = "; its ranges are left out: the -quantized modes take them" if unused else ""
    load_weights(model, path, new_head=new_head, who=who, note=note)


def save(model: keras.Model, network: Any, task: glue.Task, source: str, directory: str) -> str:
    """Save the model in out/: configuration, vocabulary and weights, with recipe and ranges if it
    is quantized.
    """
    out = os.path.join(directory, OUT)
    os.makedirs(out, exist_ok=True)
    for name in COMPANIONS:
        if os.path.isfile(os.path.join(source, name)) and not _same(
            os.path.join(source, name), os.path.join(out, name)
        ):
            with replacing(os.path.join(out, name)) as temporary:
                shutil.copyfile(os.path.join(source, name), temporary)
    write_json(
        os.path.join(out, CONFIG), read_json(os.path.join(source, CONFIG)) | {TRAINED_ON: task.name}
    )
    prefix = os.path.join(out, NAME)
    if network is model:
        checkpoint.write(prefix, {variable.path: variable for variable in model.weights})
    else:
        tfquant.save(network, prefix)
    log(f"saved the model in {out}")
    return prefix


def _same(one: str, other: str) -> bool:
    return os.path.exists(other) and os.path.samefile(one, other)
