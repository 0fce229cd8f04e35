"""Checks of the options of run_ag_news.py."""

from __future__ import annotations

import dataclasses
import os

from examples.ag_news.settings import METHODS, Settings
from examples.checks import preset_problems
from examples.settings import TFDS
from fileio.messages import printable
from runs.checks import folder_problems, refuse, size_problems, value_problems

_OF_ENCODER = (
    *("blocks", "width", "heads", "hidden", "double_embedding", "mask_padding"),
    "pre_trained",
)


def check(settings: Settings) -> None:
    """Refuse invalid options before anything is computed.

    Raises:
        FlagError: lists every problem with its option and what to do.
    """
    problems = value_problems(settings) + _method_problems(settings) + _data_problems(settings)
    problems += _encoder_problems(settings)
    if settings.pre_trained and not settings.pretrained_checkpoint:
        problems.append("--pre_trained: set --pretrained_checkpoint to a BERT checkpoint's folder")
    if not _on_encoder(settings) and settings.width % settings.heads:
        problems.append(
            f"--heads={settings.heads}: does not divide --width ({settings.width}): choose others"
        )
    if settings.latent and settings.latent_epochs >= settings.epochs:
        problems.append(
            f"--latent_epochs={settings.latent_epochs}: leaves no epoch of --epochs"
            f" ({settings.epochs}) for the quantized network"
        )
    if not settings.exp_name or os.sep in settings.exp_name:
        problems.append(f"--exp_name={settings.exp_name}: must be a file name without folders")
    problems += folder_problems(settings.output_dir, f"--output_dir={settings.output_dir}")
    refuse(problems + size_problems(problems, settings), settings)


def _method_problems(settings: Settings) -> list[str]:
    """Options of another method than the one that is chosen; what each needs is in its flag."""
    if settings.quant_type is None:
        return []
    problems, known = [], METHODS[settings.quant_type]
    if settings.quant_method not in known:
        given = settings.quant_method or "missing"
        problems.append(
            f"--quant_method is {given}: --quant_type={settings.quant_type} takes"
            f" {' or '.join(known)}"
        )
    needed = "bit_num" if settings.quant_type == "quantization" else "quant_pattern"
    if getattr(settings, needed) is None:
        problems.append(f"--{needed} is missing: --quant_type={settings.quant_type} needs it")
    return problems


def _on_encoder(settings: Settings) -> bool:
    return settings.encoder is not None or settings.preset is not None


def _encoder_problems(settings: Settings) -> list[str]:
    """Options about the encoder that `--encoder` and `--preset` replace, and missing files."""
    if not _on_encoder(settings):
        return []
    if settings.encoder is not None and settings.preset is not None:
        return ["--encoder and --preset name two encoders: give one of them"]
    name = "encoder" if settings.encoder is not None else "preset"
    named = f"--{name}={printable(getattr(settings, name))}"
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    problems = [
        f"--{other} has no effect with {named}, which brings its own encoder: leave it out"
        for other in _OF_ENCODER
        if getattr(settings, other) != defaults[other]
    ]
    if name == "preset":
        return problems + preset_problems(settings.preset)
    config = os.path.join(settings.encoder or "", "config.json")
    if not os.path.isfile(config):
        problems.append(f"{named}: holds no config.json of a BERT checkpoint")
    return problems


def _data_problems(settings: Settings) -> list[str]:
    problems, folder = [], settings.data_dir
    if not folder:
        problems.append("--data_dir is missing: give the folder of train.csv and test.csv")
    elif not folder.startswith(TFDS):
        for split in ("train", "test"):
            if not os.path.isfile(os.path.join(folder, f"{split}.csv")):
                problems.append(f"--data_dir={printable(folder)}: holds no {split}.csv")
    if not settings.vocab_file:
        problems.append("--vocab_file is missing: give BERT's vocab.txt")
    elif not os.path.isfile(settings.vocab_file):
        problems.append(f"--vocab_file={printable(settings.vocab_file)}: there is no such file")
    return problems
