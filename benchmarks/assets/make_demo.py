"""Make the demo's assets from the shared test case and models.

The CT is resampled in plane and cropped to the body; the weights are stored in half precision without optimiser state.
Sources and licences are listed in ``coarse2fine/demo/NOTICE``.

    python benchmarks/assets/make_demo.py [--shared ../shared] [--models DIR]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray

from coarse2fine.nnunet.checkpoint import load_checkpoint

ROOT = Path(__file__).parents[2]
TARGET = ROOT / "coarse2fine" / "demo"
DATASET = "Dataset104_LungLesion"
IN_PLANE_MM = 1.0
AIR_HU, BONE_HU = -1024, 1023


def make_volume(shared: Path) -> None:
    """Resample the test case and its reference in plane, cut off table and air around the body."""
    image = sitk.ReadImage(str(shared / "data" / DATASET / "imagesTs" / "lidc0001_0000.nii.gz"))
    labels = sitk.ReadImage(str(shared / "data" / DATASET / "labelsTs" / "lidc0001.nii.gz"))
    spacing = (IN_PLANE_MM, IN_PLANE_MM, image.GetSpacing()[2])
    size = [round(n * old / new) for n, old, new in zip(image.GetSize(), image.GetSpacing(), spacing, strict=True)]
    grid = (size, sitk.Transform(), sitk.sitkLinear, image.GetOrigin(), spacing, image.GetDirection(), AIR_HU)
    smooth = sitk.Cast(sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), *grid), sitk.sitkInt16)
    clipped = sitk.Clamp(smooth, sitk.sitkInt16, AIR_HU, BONE_HU)
    one_hot = sitk.Resample(sitk.Cast(labels, sitk.sitkFloat32), *grid[:-1], 0)
    body: NDArray[np.bool_] = np.any(
        sitk.GetArrayFromImage(sitk.BinaryMorphologicalOpening(clipped > -300, [6, 6, 0])), axis=0
    )
    rows, columns = np.flatnonzero(body.any(axis=1)), np.flatnonzero(body.any(axis=0))
    print(f"body: rows {rows[0]}..{rows[-1]}, columns {columns[0]}..{columns[-1]} of {body.shape}")
    region = slice(int(columns[0]), int(columns[-1]) + 1), slice(int(rows[0]), int(rows[-1]) + 1)
    sitk.WriteImage(clipped[region[0], region[1], :], str(TARGET / "lidc0001_0000.nii.gz"), True, 9)
    sitk.WriteImage((one_hot > 0.5)[region[0], region[1], :], str(TARGET / "lidc0001_reference.nii.gz"), True, 9)


def make_model(source: Path, target: Path) -> None:
    """Copy a model folder with half-precision weights and without what only training needs."""
    checkpoint = load_checkpoint(source / "fold_all" / "checkpoint_final.pth")
    shutil.rmtree(target, ignore_errors=True)
    (target / "fold_all").mkdir(parents=True)
    plans = json.loads((source / "plans.json").read_text())
    kept = {checkpoint.configuration: plans["configurations"][checkpoint.configuration]}
    (target / "plans.json").write_text(json.dumps(plans | {"configurations": kept}, indent=1) + "\n")
    shutil.copy(source / "dataset.json", target / "dataset.json")
    # nnU-Net's state dict lists many tensors under several names; converted once, they are also stored once.
    weights = checkpoint.read(checkpoint.weights)
    halves = {value.data_ptr(): value.half() for value in weights.values()}
    torch.save(
        {
            "network_weights": {name: halves[value.data_ptr()] for name, value in weights.items()},
            "trainer_name": checkpoint.trainer,
            "init_args": {"configuration": checkpoint.configuration},
            "inference_allowed_mirroring_axes": checkpoint.mirror_axes,
        },
        target / "fold_all" / "checkpoint_final.pth",
    )


def main() -> None:
    """Write all assets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--models", type=Path, help="folder that holds nnUNetTrainer__smallPlans__3d_*")
    options = parser.parse_args()
    models = options.models or options.shared / "models" / DATASET
    make_volume(options.shared)
    for name, target in (("3d_lowres", "coarse"), ("3d_fullres", "fine")):
        make_model(models / f"nnUNetTrainer__smallPlans__{name}", TARGET / target)
    for path in sorted(TARGET.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:7.2f} MB  {path.relative_to(TARGET)}")


if __name__ == "__main__":
    main()
