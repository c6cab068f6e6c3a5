"""Train the benchmarks' stand-in models with nnU-Net's own trainer: from raw data to a model folder.

    python benchmarks/train_models.py --dataset lung --model small --start FINE --steps 400 -o OUT
    python benchmarks/train_models.py --dataset lung --evaluate OUT

The networks are small, so that minutes on one CPU core make them usable. Roles:

- ``fine`` and ``coarse``: plain nnU-Net at full and at low resolution.
- ``small``: the fine network at the size of a slot, half of the fine patch on every axis (rounded up to what the
  network can halve), with as many voxels per step.
- ``mosaic``: the fine network, trained on inputs that look like packed canvases: 2x2x2 slots, each cut from a random
  place of a random training patch. So the statistics of its instance norms are those of canvases.

``small`` and ``mosaic`` start from a fine model (``--start``). All use nnU-Net's default trainer on all training cases
(fold "all"); test cases are never read. With one thread on a CPU, a seed gives the same model again.

A training of hours is cut into pieces: every ``--every`` epochs the model folder is written as it is then, with
``training.json`` (steps so far, curve) beside it, and the same command goes on from there, on this or another machine.
The learning rate continues; the optimiser's momentum starts anew, and the random numbers are those of the step.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.machine import SHARED
from benchmarks.common.registry import MissingDataError
from canvas import Box, Triple, triple
from coarse2fine.errors import C2FError, ModelError
from coarse2fine.io import atomic_write, check_writable
from coarse2fine.nnunet.checkpoint import find_folds, load_checkpoint, read_json
from coarse2fine.system.memory import keep_freed_memory

PLANS = "smallPlans"
CONFIGURATIONS = {"fine": "3d_fullres", "coarse": "3d_lowres", "small": "3d_fullres", "mosaic": "3d_fullres"}
STEPS_PER_EPOCH, VALIDATION_STEPS = 50, 4
POOL = 8
"""Training patches that a mosaic's crops come from: the latest ones."""

FLAT_FIRST = ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))
ISOTROPIC = ((3, 3, 3),) * 5
EM_STRIDES = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2))
LUNG_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
EVEN_STRIDES = ((1, 1, 1),) + ((2, 2, 2),) * 4
NARROW, WIDE = (8, 16, 32, 64, 128), (16, 32, 64, 128, 128)


@dataclass(frozen=True, slots=True)
class Network:
    """What a small network has instead of what nnU-Net plans for a GPU; sizes are (z, y, x).

    Attributes:
        patch: Input size in voxels.
        features, kernels, strides: Of each stage.
        batch: Patches per step.
        spacing: Voxel size in the unit of the data; None takes nnU-Net's.
    """

    patch: Triple
    features: Sequence[int]
    kernels: Sequence[Triple]
    strides: Sequence[Triple]
    batch: int
    spacing: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Recipe:
    """A data set in nnU-Net's raw format, and its networks."""

    folder: str
    fine: Network
    coarse: Network
    mirror: tuple[int, ...] = (0, 1, 2)
    """Axes of the network's input along which it may be mirrored: not from left to right where labels tell sides."""


RECIPES = {
    "em": Recipe(
        "Dataset101_VNCMito",
        Network((16, 256, 256), NARROW, FLAT_FIRST, EM_STRIDES, 2),
        Network((16, 128, 64), NARROW, FLAT_FIRST, EM_STRIDES, 4, spacing=(45.0, 18.4, 18.4)),
    ),
    "lung": Recipe(
        "Dataset104_LungLesion",
        Network((32, 96, 96), WIDE, ISOTROPIC, LUNG_STRIDES, 2, spacing=(2.0, 1.0, 1.0)),
        Network((64, 64, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(4.0, 4.0, 4.0)),
    ),
    "ms": Recipe(
        "Dataset102_MSLesion",
        Network((48, 64, 64), WIDE, ISOTROPIC, EVEN_STRIDES, 4),
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(2.0, 2.0, 2.0)),
    ),
    "brain": Recipe(
        "Dataset501_BrainMALF",
        Network((64, 80, 64), WIDE, ISOTROPIC, EVEN_STRIDES, 2),
        Network((64, 80, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(2.0, 2.0, 2.0)),
        mirror=(0, 1),
    ),
    "head_neck": Recipe(
        "Dataset502_HeadNeckCT",
        Network((64, 64, 64), WIDE, ISOTROPIC, EVEN_STRIDES, 2),
        Network((48, 64, 64), NARROW, ISOTROPIC, EVEN_STRIDES, 2, spacing=(5.0, 8.0, 8.0)),
        mirror=(0, 2),
    ),
}


def slot_of(patch: Triple, strides: Sequence[Triple]) -> Triple:
    """Half of a patch on every axis, rounded up to a multiple of all strides together."""
    total = np.prod(strides, axis=0)
    return triple(-(-np.array(patch) // (2 * total)) * total)


def small_plans(plans: Mapping[str, Any], recipe: Recipe, role: str) -> dict[str, Any]:
    """nnU-Net's own plans (left as they are), cut down to the one configuration of a role, with its small network."""
    name = CONFIGURATIONS[role]
    network = recipe.coarse if role == "coarse" else recipe.fine
    patch, batch = network.patch, network.batch
    if role == "small":
        patch = slot_of(patch, network.strides)
        batch = batch * math.prod(network.patch) // math.prod(patch)
    result: dict[str, Any] = json.loads(json.dumps(plans))
    configuration = result["configurations"]["3d_fullres"]
    spacing = network.spacing or configuration["spacing"]
    identifier = "small_" + name.removeprefix("3d_")
    configuration |= {"patch_size": [*patch], "batch_size": batch, "spacing": [*spacing], "data_identifier": identifier}
    stages = len(network.features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [*network.features],
        "kernel_sizes": [[*kernel] for kernel in network.kernels],
        "strides": [[*stride] for stride in network.strides],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    return result | {"plans_name": PLANS, "configurations": {name: configuration}}


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """A training patch.

    Attributes:
        image: Shape (channels, z, y, x).
        targets: Labels at full and at lower resolutions, each (1 or regions, z, y, x); the first is the full one.
    """

    image: torch.Tensor
    targets: Sequence[torch.Tensor]


def make_mosaic(pool: Sequence[Patch], slot: Triple, generator: np.random.Generator, foreground: float = 0.5) -> Patch:
    """A patch tiled from slot-size crops of random patches: what a packed canvas looks like.

    Crops begin where voxels of all resolutions begin: so a crop of coarse labels is what coarsening makes of the crop.

    Args:
        pool: Patches of one shape, a multiple of the slot.
        slot: Size (z, y, x) of a crop; a multiple of the coarsest labels' voxels.
        generator: Of random numbers.
        foreground: Share of crops with a labelled voxel in the middle, if their patch has one and its rim allows it.
    """
    shape, size = np.array(pool[0].image.shape[1:]), np.array(slot)
    scales = [shape // target.shape[1:] for target in pool[0].targets]
    last, raster = shape - size, np.max(scales, axis=0)
    result = Patch(torch.empty_like(pool[0].image), [torch.empty_like(target) for target in pool[0].targets])
    for cell in np.ndindex(*(shape // size)):
        patch, start = pool[int(generator.integers(len(pool)))], generator.integers(last + 1)
        voxels = torch.nonzero((patch.targets[0] > 0).any(dim=0)).numpy()
        if generator.random() < foreground and len(voxels):
            start = np.clip(generator.choice(voxels) - size // 2, 0, last)
        places = np.array(cell) * size, start // raster * raster
        tensors = zip((result.image, *result.targets), (patch.image, *patch.targets), (1, *scales), strict=True)
        for target, source, scale in tensors:
            to, crop = (Box.of(place // scale, size // scale) for place in places)
            target[:, *to.slices] = source[:, *crop.slices]
    return result


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come, as in ``training.json``.

    Attributes:
        steps: Training steps so far.
        total: Steps that the learning rate is planned for.
        seconds: Time that they took.
        curve: (steps, pseudo-Dice of nnU-Net's validation patches) after each epoch.
    """

    steps: int
    total: int
    seconds: float = 0.0
    curve: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, folder: Path | None, total: int) -> Progress:
        """Of the model folder to be written, if a training of as many steps was begun there."""
        file = folder / "training.json" if folder else None
        if file is None or not file.exists():
            return cls(0, total)
        found = read_json(file)
        if found["total"] != total:
            raise MissingDataError(
                f"{file} tells of a training of {found['total']} steps, not {total}",
                f"Give --steps {found['total']} to go on, or another folder (-o).",
            )
        return cls(found["steps"], total, found["seconds"], tuple((int(a), float(b)) for a, b in found["curve"]))

    def after(self, epoch: int, pseudo: float, seconds: float) -> Progress:
        """One epoch further."""
        steps = self.steps + epoch
        return Progress(steps, self.total, self.seconds + seconds, (*self.curve, (steps, round(pseudo, 4))))


def trainer_class(mosaic: bool, slot: Triple, plain: float, seed: int) -> Any:
    """nnU-Net's default trainer in pieces, perhaps on mosaics of its latest patches; arguments as of ``mix``.

    Callers set ``mirror``, ``epochs_before`` and ``after_epoch``.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    pool, generator = deque[Patch](maxlen=POOL), np.random.default_rng(seed)

    class PiecewiseTrainer(nnUNetTrainer):
        """A piece of a training, with the learning rate of the whole; mirrors along some axes only."""

        mirror: tuple[int, ...] = (0, 1, 2)
        epochs_before: int = 0
        after_epoch: Callable[[], None] = staticmethod(lambda: None)

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's name
            *rest, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = self.mirror
            return *rest, self.mirror

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            self.lr_scheduler.step(self.epochs_before + self.current_epoch)

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            self.after_epoch()

    class MosaicTrainer(PiecewiseTrainer):
        """Nothing else is different."""

        def train_step(self, batch: dict[str, Any]) -> Any:
            return super().train_step(mix(batch, pool, slot, plain, generator))

    return MosaicTrainer if mosaic else PiecewiseTrainer


def use_bfloat16(trainer: Any) -> None:
    """Run the network in bfloat16 on the CPU, as nnU-Net does in float16 on a GPU; the loss stays in float32."""
    loss, autocast = trainer.loss, torch.autocast("cpu", torch.bfloat16)
    trainer.loss = lambda outputs, targets: loss([output.float() for output in outputs], targets)
    trainer.train_step, trainer.validation_step = autocast(trainer.train_step), autocast(trainer.validation_step)


def skip_broken_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step: forget gradients that are not finite, as nnU-Net's gradient scaler does on a GPU only."""
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        optimizer.zero_grad(set_to_none=True)


def mix(
    batch: Mapping[str, Any], pool: deque[Patch], slot: Triple, plain: float, generator: np.random.Generator
) -> dict[str, Any]:
    """A batch in which each input is a mosaic, or with probability ``plain`` what it was; fills the pool, too."""
    patches = [Patch(image, targets) for image, *targets in zip(batch["data"], *batch["target"], strict=True)]
    pool.extend(patches)
    mixed = [patch if generator.random() < plain else make_mosaic(pool, slot, generator) for patch in patches]
    targets = [torch.stack(scale) for scale in zip(*(patch.targets for patch in mixed), strict=True)]
    return {**batch, "data": torch.stack([patch.image for patch in mixed]), "target": targets}


def set_folders(data: Path, work: Path) -> Path:
    """Tell nnU-Net, before it is imported, where everything is; returns its folder of preprocessed data."""
    for name, path in (("raw", data), ("preprocessed", work / "pre"), ("results", work / "results")):
        path.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(path.resolve())
    os.environ.setdefault("nnUNet_compile", "f")  # compiling takes longer than it saves in so few steps
    return work / "pre"


def prepare(data: Path, folder: Path, recipe: Recipe, role: str) -> dict[str, Any]:
    """Fingerprint, plan and preprocess a data set, unless it was done; returns the small plans."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    identity, name = int(recipe.folder[7:10]), CONFIGURATIONS[role]
    done, source = folder / f"prepared_{name}", str(data.resolve())
    if not done.exists() or done.read_text() != source:
        api.extract_fingerprint_dataset(identity, num_processes=1, verbose=False)
        api.plan_experiment_dataset(identity)
        plans = small_plans(read_json(folder / "nnUNetPlans.json"), recipe, role)
        (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))
        api.preprocess_dataset(identity, PLANS, (name,), [1])
        done.write_text(source)
    return small_plans(read_json(folder / "nnUNetPlans.json"), recipe, role)


def train(plans: Mapping[str, Any], dataset: Mapping[str, Any], options: argparse.Namespace) -> str:
    """Run nnU-Net's trainer with small plans and ``dataset.json`` and publish its model; returns a summary."""
    os.environ.update(nnUNet_n_proc_DA="0" if options.device == "cpu" else "8")  # the planner does not work with 0
    recipe, epochs = RECIPES[options.dataset], math.ceil(options.steps / STEPS_PER_EPOCH)
    length = math.ceil(options.steps / epochs)
    progress = Progress.of(options.out, epochs * length)
    seed = options.seed + progress.steps  # a later piece does not see the first one's patches again
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loaders draw from it
    torch.manual_seed(seed)
    slot = triple(np.array(recipe.fine.patch) // 2)  # as in canvases: need not be a network's input
    trainer = trainer_class(options.model == "mosaic", slot, options.plain, seed)(
        plans={**plans, "continue_training": False},
        configuration=CONFIGURATIONS[options.model],
        fold="all",
        dataset_json=dict(dataset),
        device=torch.device(options.device),
    )
    trainer.num_epochs, trainer.num_iterations_per_epoch = (
        epochs,
        length,
    )  # the learning rate is planned for all of them
    trainer.num_val_iterations_per_epoch = VALIDATION_STEPS
    trainer.oversample_foreground_percent, trainer.probabilistic_oversampling = options.oversample, True
    trainer.mirror, trainer.epochs_before = recipe.mirror, progress.steps // length
    trainer.initialize()
    trainer.num_epochs -= trainer.epochs_before
    trainer.optimizer.register_step_pre_hook(skip_broken_step)
    if options.bf16:
        use_bfloat16(trainer)
    start = options.out if progress.steps else options.start
    if start:
        load_weights(trainer.network, start)
    before = time.perf_counter()

    def after_epoch() -> None:
        nonlocal before, progress
        now, pseudo = time.perf_counter(), float(trainer.logger.get_value("mean_fg_dice", step=-1))
        progress, before = progress.after(length, pseudo, now - before), now
        if trainer.current_epoch % options.every == 0 or trainer.current_epoch == trainer.num_epochs:
            latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
            trainer.current_epoch -= 1  # nnU-Net notes the epoch after the one that it takes for the current
            trainer.save_checkpoint(str(latest))
            trainer.current_epoch += 1
            publish(Path(trainer.output_folder_base), options.out, latest, progress)

    trainer.after_epoch = after_epoch
    if trainer.num_epochs:
        trainer.run_training()
    pseudo = progress.curve[-1][1]
    return f"{progress.steps} steps, {progress.seconds:.0f} s, pseudo-Dice {pseudo:.3f}"


def load_weights(network: torch.nn.Module, folder: Path) -> None:
    """Fill a network with the weights of a model folder's first fold.

    Raises:
        ModelError: If there are none, or they belong to another network.
    """
    fold = find_folds(folder, "checkpoint_final.pth")[0]
    checkpoint = load_checkpoint(folder / f"fold_{fold}" / "checkpoint_final.pth")
    weights = checkpoint.read(checkpoint.weights)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise ModelError(f"{folder} holds another network: {reason}", "Start from the fine model.") from None


def strip(checkpoint: Path, target: Path) -> None:
    """Write what inference needs of a checkpoint, with weights in half precision, which loaders convert back."""
    trained = load_checkpoint(checkpoint)
    # nnU-Net's state dict lists many tensors under several names; converted once, they are also stored once.
    weights = trained.read(trained.weights)
    halves = {tensor.data_ptr(): tensor.half() for tensor in weights.values()}
    content = {
        "network_weights": {name: halves[tensor.data_ptr()] for name, tensor in weights.items()},
        "trainer_name": "nnUNetTrainer",  # what else a role does in training is nothing to inference
        "init_args": {"configuration": trained.configuration},
        "inference_allowed_mirroring_axes": trained.mirror_axes,
    }
    with atomic_write(target) as path:
        torch.save(content, path)


def publish(trained: Path, target: Path, checkpoint: Path, progress: Progress) -> None:
    """Copy a trained model folder without what only training needs, and see that it can be loaded."""
    (target / "fold_all").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
        with atomic_write(target / name) as path:
            shutil.copyfile(trained / name, path)
    strip(checkpoint, target / "fold_all" / "checkpoint_final.pth")
    from coarse2fine.nnunet.loading import load_model

    load_model(target)
    with atomic_write(target / "training.json") as path:
        path.write_text(json.dumps(asdict(progress), indent=1) + "\n")


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
    add("--seed", type=int, default=0)
    add("--data", type=Path, default=SHARED / "data", metavar="DIR", help="nnU-Net raw data sets")
    add("--work", type=Path, metavar="DIR", help="keep preprocessed data and logs here; default: a temporary folder")
    add("-o", "--out", type=Path, metavar="FOLDER", help="model folder to write")
    add("--evaluate", type=Path, metavar="FOLDER", help="only measure this model on the training cases")
    return parser


def run(options: argparse.Namespace) -> None:
    """Train or measure."""
    recipe = RECIPES[options.dataset]
    data = options.data / recipe.folder
    if not (data / "imagesTr").is_dir():
        raise MissingDataError(f"{data} has no imagesTr", "Name the folder of raw data sets (--data).")
    if options.evaluate:
        print(f"mean Dice of the training cases: {evaluate(options.evaluate, data):.3f}")
        return
    check_writable(options.out / "plans.json", overwrite=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = set_folders(options.data, options.work or Path(temporary)) / recipe.folder
        plans = prepare(options.data, folder, recipe, options.model)
        summary = train(plans, read_json(folder / "dataset.json"), options)
    print(f"{recipe.folder} {options.model}: {summary} -> {options.out}")


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
