"""Train the benchmarks' stand-in models with nnU-Net's own trainer: from raw data to a model folder.

    python benchmarks/train_models.py --dataset lung --model small --start FINE --steps 400 -o OUT
    python benchmarks/train_models.py --dataset lung --evaluate OUT

The networks are small, so that minutes on one CPU core make them usable. Roles:

- ``fine`` and ``coarse``: plain nnU-Net at full and at low resolution.
- ``small``: the fine network at the size of a slot, half of the fine patch on every axis (rounded up to what the
  network can halve), with as many voxels per step.
- ``mosaic``: the fine network, trained on inputs that look like packed canvases: 2x2x2 slots, each cut from a random
  place of a random training patch. So the statistics of its instance norms are those of canvases.

``small`` and ``mosaic`` start from a fine model (``--start``). All use nnU-Net's default trainer (but for the
optimiser, ``--adam``) on all training cases (fold "all"), or on every other one (``--fold``): two models, each of which
has not seen the other's cases. Test cases are never read. A model of other labels can be started from, too: its output
layers are then left out. With one thread on a CPU, a seed gives the same model again.

A training of hours is cut into pieces: every ``--every`` epochs the model folder is written as it is then, with
``training.json`` (steps so far, curve) beside it, and the same command goes on from there, on this or another machine.
The learning rate continues; the optimiser's momentum starts anew, and the random numbers are those of the step.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from benchmarks.common.machine import SHARED, work_folder
from benchmarks.common.registry import MissingDataError
from benchmarks.training.derived import derive
from benchmarks.training.model_folder import ALL
from benchmarks.training.recipes import CONFIGURATIONS, RECIPES
from benchmarks.training.trainer import FOLDS, Training, prepare, set_folders, train
from coarse2fine.errors import C2FError
from coarse2fine.io import check_writable
from coarse2fine.nnunet.checkpoint import read_json
from coarse2fine.system.memory import keep_freed_memory


def evaluate(folder: Path, data: Path) -> float:
    """Mean Dice of a model's plain sliding window on a data set's training cases, file to file, without mirroring."""
    from coarse2fine.config.reader import load_config
    from coarse2fine.evaluation.masks import dice, leave_out
    from coarse2fine.io import find_cases, read_volume
    from coarse2fine.pipeline import Pipeline

    settings = ["mode=one-stage", f"fine.model={json.dumps(str(folder.resolve()))}", "fine.mirroring=false"]
    pipeline = Pipeline.from_config(load_config(None, [*settings, "fine.tile_step=0.5"]))
    scores = []
    for case in find_cases(data / "imagesTr", pipeline.fine.channels):
        with tempfile.TemporaryDirectory() as temporary:
            files = [parent / f"{case.name}{case.suffix}" for parent in (Path(temporary), data / "labelsTr")]
            pipeline.run_files(case.files, files[0])
            labels, reference = (read_volume([file]).channels[0] for file in files)
            ignore = pipeline.fine.labels.ignore
            scores.append(dice(*(leave_out(one, reference, ignore) > 0 for one in (labels, reference))))
        print(f"{case.name}: Dice {scores[-1]:.3f}", flush=True)
    return sum(scores) / len(scores)


def build_parser() -> argparse.ArgumentParser:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--dataset", required=True, choices=RECIPES)
    add("--model", choices=CONFIGURATIONS, default="fine", help="role (default: fine)")
    add("--steps", type=int, default=400, help="training steps (default: 400); whole epochs, so a few more at most")
    add("--every", type=int, default=10, metavar="N", help="write the model every N epochs of 50 steps (10)")
    add("--start", type=Path, metavar="FOLDER", help="model folder whose weights to start from")
    add("--oversample", type=float, default=0.33, metavar="P", help="share of patches centred on foreground (0.33)")
    add("--plain", type=float, default=0.25, metavar="P", help="mosaic: share of inputs left as they are (0.25)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--bf16", action="store_true", help="on a CPU that computes with bfloat16: half the time")
    add("--adam", type=float, metavar="RATE", help="train by AdamW with this learning rate, which starts sooner")
    add("--seed", type=int, default=0)
    add("--fold", choices=(ALL, *FOLDS), default=ALL, help="all, or the half of the training cases to leave out (all)")
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="nnU-Net raw data sets")
    add("--work", type=Path, metavar="DIR", help="keep preprocessed data and logs here; default: a temporary folder")
    add("-o", "--out", type=Path, metavar="FOLDER", help="model folder to write")
    add("--evaluate", type=Path, metavar="FOLDER", help="only measure this model on the training cases")
    return parser


def run(options: argparse.Namespace) -> None:
    """Train or measure."""
    recipe = RECIPES[options.dataset]
    data = options.data / (recipe.source or recipe.folder)
    if not (data / "imagesTr").is_dir():
        raise MissingDataError(f"{data} has no imagesTr", "Name the folder of raw data sets (--data).")
    with work_folder(options.work) as work:
        raw = options.data
        if recipe.source:
            raw = work / "raw"
            derive(data, raw / recipe.folder, recipe.merged)
        if options.evaluate:
            print(f"mean Dice of the training cases: {evaluate(options.evaluate, raw / recipe.folder):.3f}")
            return
        check_writable(options.out / "plans.json", overwrite=True)
        folder = set_folders(raw, work) / recipe.folder
        plans = prepare(raw, folder, recipe, options.model)
        known = {field.name: getattr(options, field.name) for field in fields(Training)}
        progress = train(plans, read_json(folder / "dataset.json"), Training(**known))
    told = f"{progress.steps} steps, {progress.seconds:.0f} s, pseudo-Dice {progress.curve[-1][1]:.3f}"
    print(f"{recipe.folder} {options.model}: {told} -> {options.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    starts = options.start or options.evaluate or options.model in ("fine", "coarse")
    if not options.evaluate and not options.out:
        parser.error("-o FOLDER is missing")
    if not starts:
        parser.error(f"{options.model} starts from a fine model: give its folder (--start)")
    if options.steps < 1 or options.every < 1 or not 0 <= options.oversample <= 1 or not 0 <= options.plain <= 1:
        parser.error("--steps and --every are at least 1, --oversample and --plain are from 0 to 1")
    if options.adam is not None and not 0 < options.adam < 1:
        parser.error("--adam is a learning rate between 0 and 1")
    if options.bf16 and options.device != "cpu":
        parser.error("--bf16 is for a CPU; a GPU computes with float16 anyway")
    keep_freed_memory()
    try:
        run(options)
    except C2FError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
