"""Command lines of all programs.

Help, version and wrong arguments before TensorFlow is imported, spelling, --config files.
"""

import json
import pathlib
import subprocess
import sys

import pytest

from runs import script
from runs.glue import command_line
from runs.glue.settings import MODES
from runs.logging import log_on_chief_only
from runs.settings import FlagError
from runs.squad.command_line import parse as parse_squad
from runs.squad.flags import Settings

ROOT = pathlib.Path(__file__).parents[1]
SQUAD, GLUE, TFQUANT = "run_squad", "run_glue", "tfquant"
WIKITEXT, LIBRISPEECH = "examples.run_wikitext", "examples.run_librispeech"
COMMANDS = ("export", "check", "benchmark")
# Arguments -> what the help or the version shows.
ANSWERS = {
    SQUAD: {
        "--help": "--do_train",
        "-h": "--do_train",
        "--helpfull": "--do_train",
        "--helpshort": "--do_train",
        "--help=true": "--do_train",
        "--do_train --help": "openvino (model.xml)",
        "--version": "tfquant ",
    },
    GLUE: (
        {
            "--help": "train-baseline",
            "-h": "final_score.txt",
            "--version": "tfquant ",
            "--help --task rte": "MODE",
        }
        | {f"{mode} --help": "--model-path" for mode in MODES}
        | {"--mode=train_quantized --help": "--teacher", "train_baseline --version": "tfquant "}
    ),
    TFQUANT: (
        {"--help": "benchmark", "--version": "tfquant "}
        | dict(
            zip(
                [f"{command} --help" for command in COMMANDS],
                ("--target", "feature_map", "--threads"),
                strict=True,
            )
        )
    ),
    WIKITEXT: {"--help": "--max_length", "--stride 8 -h": "wiki.test.raw", "--version": "tfquant "},
    LIBRISPEECH: {"--help": "--compare DIR", "--version": "tfquant "},
}
# Arguments -> a part of the one line that refuses them.
REFUSED = {
    SQUAD: {
        "--no_such_flag": "unknown option --no_such_flag",
        "--max-seq-lenght=3": "unknown option --max-seq-lenght, did you mean --max_seq_length?",
        "--max_seq_length=long": "--max_seq_length: invalid int value: 'long'",
        "--do_train=maybe": "--do_train: 'maybe' is neither true nor false",
        "--quant_mode ft9": "--quant_mode: invalid choice: 'ft9'",
        "--do_train yes": "unexpected argument 'yes'",
        "--output_dir": "--output_dir: expected one argument",
        "--config=nowhere.yaml": "--config: there is no file nowhere.yaml",
        "--no_such\x1b[31m": r"--no_such\x1b[31m",
    },
    GLUE: {
        "": "MODE is missing: one of train-baseline",
        "--task rte": "MODE is missing",
        "train --help": "unknown mode 'train'",
        "train-baseline --n_bits 4": (
            "train-baseline has no --n_bits; --n_bits is of train-quantized and validate-quantized"
        ),
        "validate-quantized --task mprc": "--task: invalid choice: 'mprc'",
        "validate-quantized --n-bits many": "--n-bits: invalid int value: 'many'",
        "validate-quantized --config nowhere.yaml": "--config: there is no file nowhere.yaml",
    },
    TFQUANT: {
        "": "required: COMMAND",
        "import": "invalid choice: 'import'",
        "export a b": "required: --model",
        "export a b --model=m --target=coreml": "--target: invalid choice: 'coreml'",
        "check a b --model=m --check-data=d --no-such": "unrecognized arguments: --no_such",
        "benchmark a --threads=all": "--threads: invalid int value: 'all'",
    },
    WIKITEXT: {
        "--model-di=gpt2": "unknown option --model-di",
        "--max_lenght 8": "unknown option --max_lenght, did you mean --max_length?",
        "--model-id": "--preset: expected one argument",
        "--stride half": "--stride: invalid int value: 'half'",
        "--dtype int8": "--dtype: invalid choice: 'int8'",
        "--config nowhere.yaml": "--config: there is no file nowhere.yaml",
    },
    LIBRISPEECH: {
        "--batch-size=all": "--batch_size: invalid int value: 'all'",
        "--compare": "--compare: expected at least one argument",
        "speech": "unexpected argument 'speech'",
    },
}
CHILD = """
import contextlib, io, json, runpy, sys
name, *cases = json.loads(sys.argv[1])
for words in cases:
    sys.argv, out, err = [name, *words.split()], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code or 0
    slow = sorted({"tensorflow", "keras", "numpy", "scipy", "sklearn"} & set(sys.modules))
    print(json.dumps([status, out.getvalue(), err.getvalue(), slow]))
"""


@pytest.mark.parametrize("program", [SQUAD, GLUE, TFQUANT, WIKITEXT, LIBRISPEECH])
def test_help_version_and_wrong_arguments_are_answered_without_tensorflow(program):
    cases = [*ANSWERS[program], *REFUSED[program]]
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([program, *cases])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    answers = dict(zip(cases, map(json.loads, done.stdout.splitlines()), strict=True))
    for words, shown in ANSWERS[program].items():
        status, out, err, slow = answers[words]
        assert (status, err, slow) == (0, "", []), words
        assert shown in out, words
    for words, message in REFUSED[program].items():
        status, out, err, slow = answers[words]
        assert (status, out, slow) == (2, "", []), words
        assert message in err and err.endswith("\n") and err[:-1].isprintable(), (words, err)


@pytest.mark.parametrize(
    "words",
    [
        "--do_train --nodo_lower_case --learning_rate=1e-5 --use_bf16=1 --export_target openvino",
        "--do-train --no-do-lower-case --learning-rate 1e-5 --use-fp16 --target=openvino",
        (
            "-do_train=true --do_lower_case=False -learning_rate=0.00001 --use_bf16=yes"
            " --export-target=openvino"
        ),
    ],
)
def test_hyphens_underscores_and_values_of_truth_are_the_same_in_run_squad(words):
    expected = Settings(
        do_train=True,
        do_lower_case=False,
        learning_rate=1e-5,
        use_bf16=True,
        export_target="openvino",
    )
    assert parse_squad(words.split(), "") == expected


def test_the_last_of_a_repeated_flag_counts_and_values_may_hold_any_character():
    found = parse_squad(
        ["--output_dir=a", "--output-dir", "b=c d", "--quant_recipe=", "--seed", "-3"], ""
    )
    assert found == Settings(output_dir="b=c d", quant_recipe="", seed=-3)


CONFIG = """
# Options as a person writes them: numbers that YAML 1.1 does not take for numbers, and words that
# it does not take for words.
do-train: yes
if_quant: true
quantize_residual: no
learning_rate: 1e-5
train_batch_size: 16
distillation_layers: 1:3
teacher: null
output_dir: "out 1"
use_fp16: on
"""


def test_a_file_of_options_is_read_and_the_command_line_wins(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    expected = {
        "do_train": True,
        "if_quant": True,
        "quantize_residual": False,
        "learning_rate": 1e-5,
        "train_batch_size": 16,
        "distillation_layers": "1:3",
        "output_dir": "out 1",
        "use_bf16": True,
    }
    assert parse_squad([f"--config={path}"], "") == Settings(**expected)
    changed = parse_squad(["--train-batch-size=4", "--noif_quant", "--config", str(path)], "")
    assert changed == Settings(**expected | {"train_batch_size": 4, "if_quant": False})


def test_a_file_of_options_may_name_the_mode_and_several_tasks(tmp_path):
    path = tmp_path / "run.yaml"
    lines = [
        "mode: validate_quantized",
        "task: [RTE, cola]",
        "seed: [1, 2]",
        "n-bits: 4",
        "pad_to_max_length: no",
    ]
    path.write_text("\n".join([*lines, "eval_batch_size: 3"]))
    found = command_line.parse(["--config", str(path)], "")
    assert (found.mode, found.task, found.seed) == ("validate-quantized", ("rte", "cola"), (1, 2))
    assert (found.n_bits, found.pad_to_max_length, found.eval_batch_size) == (4, False, 3)
    other = command_line.parse(
        ["validate-quantized", f"--config={path}", "--task=sst2", "--n_bits", "6"], ""
    )
    assert (other.task, other.seed, other.n_bits) == (("sst2",), (1, 2), 6)


BAD_CONFIGS = {
    "no_such: 1": "unknown option --no_such",
    "max_seq_lenght: 1": "did you mean --max_seq_length?",
    "config: other.yaml": "unknown option --config",
    "max_seq_length: long": "--max_seq_length: invalid int value: 'long'",
    "max_seq_length: [1, 2]": "--max_seq_length takes one value, not a list",
    "output_dir: {a: 1}": "output_dir must have a value or a list of values",
    "do_train: 1\ndo-train: 0": "do-train is there twice",
    "do_train: 1\ndo_train: 0": "key 'do_train' is there twice",
    "do_train: maybe": "'maybe' is neither true nor false",
    "quant_mode: ft9": "--quant_mode: invalid choice: 'ft9'",
    "[do_train]": "must hold NAME: VALUE",
    "do_train: [": "is no YAML",
    "seed: &a [1]\nmax_seq_length: [*a]": "max_seq_length must have a value or a list of values",
}


@pytest.mark.parametrize("text", BAD_CONFIGS)
def test_a_bad_file_of_options_is_refused_in_one_line_with_status_2(text, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SystemExit) as ended:
        parse_squad([f"--config={path}"], "")
    said = capsys.readouterr()
    assert ended.value.code == 2 and not said.out
    assert said.err.startswith("run_squad.py: --config") and str(path) in said.err
    assert BAD_CONFIGS[text] in said.err and said.err.count("\n") == 1


def test_options_of_other_modes_in_a_file_are_refused(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("n_bits: 4")
    with pytest.raises(SystemExit) as ended:
        command_line.parse(["train-baseline", f"--config={path}"], "")
    assert (
        ended.value.code == 2
        and "train-baseline has no --n-bits; --n-bits is of" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (FlagError("  --seed=-1: must not be negative"), 2, "--seed=-1: must not be negative"),
        (ValueError("dev.json: damaged"), 1, "s.py: dev.json: damaged"),
        (OSError("no space"), 1, "s.py: no space"),
    ],
)
def test_flags_that_contradict_end_with_status_2_and_other_errors_with_1(
    error, status, message, capsys, monkeypatch
):
    def work():
        raise error

    monkeypatch.setattr(script, "end_on_signals", lambda name: None)
    with pytest.raises(SystemExit) as ended:
        script.execute("s.py", work)
    said = capsys.readouterr()
    assert ended.value.code == status and not said.out
    assert said.err.splitlines()[-1].strip() == message


def test_the_result_is_one_line_of_json_of_rank_0_alone(capsys, monkeypatch):
    monkeypatch.setattr(script, "end_on_signals", lambda name: None)
    script.execute("s.py", lambda: {"f1": 1.5})
    assert json.loads(capsys.readouterr().out) == {"f1": 1.5}
    log_on_chief_only(1)
    try:
        script.execute("s.py", lambda: {"f1": 1.5})
    finally:
        log_on_chief_only(0)
    assert not capsys.readouterr().out
