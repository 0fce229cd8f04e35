"""Ranges, logits and exported files of the real model, before and after a change, compared bit for
bit.

    python -m benchmarks.bit_identity --before COMMIT --shared ../shared

Both versions run this file in processes of their own, one after the other on one machine, on the
same batches and weights. The result is results/bit_identity.json: a row for each recipe, with the
number of ranges, logits and tensors of the ONNX file and how many of them differ.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np

RECIPES = (
    "int8_residual_float_asymmetric",
    "int8_residual_asymmetric",
    "int8_residual",
    "int8_residual_both",
    "int8_outputs",
    "ft2",
    "cpu_onnxruntime",
    "w4a8_residual",
)
ROOT = pathlib.Path(__file__).resolve().parents[1]
_INPUTS = ("input_ids", "input_mask", "segment_ids")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare two versions bit for bit.")
    parser.add_argument("--before", help="commit to compare with")
    parser.add_argument("--shared", type=pathlib.Path, default=ROOT.parent / "shared")
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help="recipes to compare")
    parser.add_argument("--dump", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.dump:
        _dump(options.dump, options.shared.resolve(), options.recipes)
    elif options.before:
        _compare(options.before, options.shared.resolve(), options.recipes)
    else:
        parser.error("--before is missing: name the commit to compare with")


def _compare(commit: str, shared: pathlib.Path, recipes: Sequence[str]) -> None:
    from benchmarks.results import Results
    from benchmarks.squad_data import Squad

    results = Results("bit_identity", seed=12345, fresh=True)
    with tempfile.TemporaryDirectory() as folder:
        work = pathlib.Path(folder)
        batches = Squad(shared).calibration_batches(windows=64)
        np.savez(
            work / "batches.npz",
            **{f"{i}/{k}": v for i, b in enumerate(batches) for k, v in b.items()},
        )
        old = work / "tree"
        subprocess.run(["git", "-C", ROOT, "worktree", "add", "--detach", old, commit], check=True)
        try:
            for name, tree in (("before", old), ("after", ROOT)):
                (work / name).mkdir()
                (work / name / "batches.npz").symlink_to(work / "batches.npz")
                _run(tree, work / name, shared, recipes)
        finally:
            subprocess.run(["git", "-C", ROOT, "worktree", "remove", "--force", old], check=True)
        for recipe in recipes:
            figures = _differences(work / "before", work / "after", recipe)
            results.row(recipe, lambda figures=figures: {"before": commit, **figures})


def _run(
    tree: pathlib.Path, folder: pathlib.Path, shared: pathlib.Path, recipes: Sequence[str]
) -> None:
    """Run `_dump` with the packages of `tree`; `-P` keeps the folder of this file off the path."""
    command = [sys.executable, "-P", __file__, "--dump", str(folder), "--shared", str(shared)]
    command += ["--recipes", *recipes]
    environment = os.environ | {"PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"}
    subprocess.run(command, check=True, env=environment, cwd=tree)


def _dump(folder: pathlib.Path, shared: pathlib.Path, recipes: Sequence[str]) -> None:
    import modeling
    import tfquant

    weights = shared / "models" / "minilm_squad"
    with np.load(folder / "batches.npz") as archive:
        count = len({name.partition("/")[0] for name in archive})
        batches = [{name: archive[f"{i}/{name}"] for name in _INPUTS} for i in range(count)]
    for recipe in recipes:
        model = modeling.build_squad_model(
            modeling.BertConfig.from_json_file(weights / "config.json")
        )
        modeling.load_weights(model, weights)
        model = tfquant.quantize(model, recipe, batches, progress=False)
        values = {f"range/{address}": np.stack(ends) for address, ends in model.ranges().items()}
        values |= {f"logits/{name}": np.asarray(value) for name, value in model(batches[0]).items()}
        np.savez(folder / f"{recipe}.npz", **values)
        # Not checked against the simulation: a file that the check refuses is compared as well.
        tfquant.export(model, folder / f"{recipe}.onnx", target="onnx")
        print(
            f"{recipe}: {len(values)} arrays, file of {(folder / f'{recipe}.onnx').stat().st_size}"
            " bytes",
            flush=True,
        )


def _differences(before: pathlib.Path, after: pathlib.Path, recipe: str) -> dict[str, Any]:
    """Count what differs between the two versions for one recipe."""
    with np.load(before / f"{recipe}.npz") as old, np.load(after / f"{recipe}.npz") as new:
        figures = {part: _count(dict(old), dict(new), f"{part}/") for part in ("range", "logits")}
    files = [folder / f"{recipe}.onnx" for folder in (before, after)]
    old_file, new_file = (file.read_bytes() for file in files)
    figures["file"] = {"bytes": len(new_file), "equal": old_file == new_file}
    if old_file != new_file:
        figures["file"] |= _compare_tensors(*map(_tensors_of, files)) | {
            "nodes": [len(_nodes(f)) for f in files]
        }
    return figures


def _count(old: dict[str, np.ndarray], new: dict[str, np.ndarray], prefix: str) -> dict[str, int]:
    names = {name for name in old.keys() | new.keys() if name.startswith(prefix)}
    differ = [n for n in names if n not in old or n not in new or not _same_bits(old[n], new[n])]
    return {"compared": len(names), "differ": len(differ)}


def _compare_tensors(old: dict[str, np.ndarray], new: dict[str, np.ndarray]) -> dict[str, int]:
    """Count initializers without a bit-equal one in the other file.

    Names that tf2onnx numbers in order differ between files with the same tensors, so those that
    only one file has are matched by value.
    """
    common = old.keys() & new.keys()
    differ = sum(not _same_bits(old[name], new[name]) for name in common)
    rest = [
        collections.Counter(
            (str(value.dtype), value.shape, value.tobytes())
            for name, value in tensors.items()
            if name not in common
        )
        for tensors in (old, new)
    ]
    unmatched = [(rest[0] - rest[1]).total(), (rest[1] - rest[0]).total()]
    return {
        "compared": len(old.keys() | new.keys()),
        "named otherwise": rest[1].total(),
        "differ": differ + max(unmatched),
    }


def _same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _tensors_of(file: pathlib.Path) -> dict[str, np.ndarray]:
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _nodes(file: pathlib.Path) -> list[Any]:
    import onnx

    return list(onnx.load(str(file)).graph.node)


if __name__ == "__main__":
    main()
