"""run_glue.py in two processes under mpirun."""

import json
import shutil

import numpy as np
import pytest

import run_glue
from runs.glue import command_line
from tasks.glue import synthetic
from tests.distributed.ranks import needs_ranks, two_ranks
from tests.run_glue.tiny import QUANTIZED, TINY
from tfquant import checkpoint


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """A command line without its output folder, for a model of random weights that quantized
    training starts from.
    """
    folder = tmp_path_factory.mktemp("glue")
    data = synthetic.write_dataset(folder / "data", train_rows=48, dev_rows=23)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(
        json.dumps(json.loads(open(data.config_file).read()) | TINY)
    )
    shutil.copy(data.vocab_file, folder / "model" / "vocab.txt")
    common = (
        f"--task rte --data-dir {data.data_dir} --max-seq-length 48 --max-steps 1 --batch-size 8"
        " --save-model"
    )
    run_glue.run(
        command_line.parse(
            f"train-baseline {common} --model-path {folder / 'model'} --output-dir"
            f" {folder / 'float'}".split(),
            "",
        )
    )
    return (
        f"train-quantized --task rte --data-dir {data.data_dir} --max-seq-length 48 --max-steps 3"
        f" --save-model {QUANTIZED} --eval-strategy steps --eval-steps 2 --load-best-model-at-end"
        " --metric-for-best-model loss --learn-ranges --attn-dropout 0 --hidden-dropout 0"
        f" --est-ranges-batch-size 4 --num-est-batches 3 --model-path {folder / 'float' / 'out'}"
    )


# test_two_ranks.py and test_run_squad.py stand for it.
@pytest.mark.long
@needs_ranks
def test_two_processes_train_and_score_as_one_with_twice_the_batch_and_rate(words, tmp_path):
    one = f"{words} --batch-size 8 --learning-rate 2e-3 --output-dir {tmp_path / 'one'}"
    found = run_glue.run(command_line.parse(one.split(), ""))
    two = f"{words} --batch-size 4 --learning-rate 1e-3 --output-dir {tmp_path / 'two'} --horovod"
    done = two_ranks(
        "run_glue.py", *two.split()
    )  # which fails if the ranks do not hold the same weights at a checkpoint
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert [json.loads(line) for line in lines] == [found]
    alone, together = (
        checkpoint.read(tmp_path / name / "out" / "model.ckpt") for name in ("one", "two")
    )
    moved = checkpoint.read(words.split()[-1] + "/model.ckpt")
    for name in moved:
        np.testing.assert_allclose(together[name], alone[name], rtol=1e-3, atol=2e-5, err_msg=name)
    assert any(not np.array_equal(moved[name], alone[name]) for name in moved)
    ranges = [name for name in alone if name.startswith("tfquant/ranges/")]
    assert len(ranges) > 40
    best = [
        json.loads((tmp_path / name / "results.json").read_text())["training"]["best"]
        for name in ("one", "two")
    ]
    assert best[0]["step"] == best[1]["step"] and best[0]["score"] == pytest.approx(
        best[1]["score"], abs=1e-3
    )
