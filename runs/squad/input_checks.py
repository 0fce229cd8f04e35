"""Checks of the data that a run reads, before any work."""

from fileio.messages import printable
from runs.checks import refuse
from runs.logging import log
from runs.squad.data import read_examples
from runs.squad.flags import TFDS, Settings
from tasks import squad


def check_inputs(settings: Settings) -> None:
    """Read the data files once, and log which questions have no answer to score.

    Raises:
        FlagError: a file cannot be read; the message lists every one.
    """
    problems = []
    for name, used, training in (
        ("train_file", settings.do_train or settings.do_calib, True),
        ("predict_file", settings.do_predict or settings.do_export, False),
    ):
        path = getattr(settings, name)
        if not used or not path:
            continue
        try:
            if path.startswith(TFDS):
                version_2 = settings.version_2_with_negative
                squad.check_tfds(path.removeprefix(TFDS), settings.tfds_dir, version_2=version_2)
                continue
            examples = read_examples(path, settings, training=training)
        except (ValueError, OSError) as error:
            named = (
                f"--{name}={path}" if path.startswith(TFDS) else f"--{name}"
            )  # files are named by their errors
            problems.append(f"{named}: {error}")
            continue
        if name == "predict_file" and settings.do_predict:
            _say_what_is_scored(examples, path, settings)
    refuse(problems, settings)


def _say_what_is_scored(examples: list, path: str, settings: Settings) -> None:
    if settings.version_2_with_negative:
        return
    unknown = [example.id for example in examples if not example.answers]
    shown = printable(path)
    if len(unknown) == len(examples):
        log(f"{shown} holds no answers: it is answered, nothing is scored")
    elif unknown:
        log(
            f"{len(unknown)} of {len(examples)} questions of {shown} have no answer (first id"
            f" {printable(unknown[0])}): the score leaves them out. If that is SQuAD 2.0, set"
            " --version_2_with_negative"
        )
