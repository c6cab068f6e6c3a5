"""What authors have published: beside our figures on the page, and never mixed with them.

Taken from the papers named; ours cannot be compared with them directly, as data, networks and steps are others.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.common.markdown import table


@dataclass(frozen=True, slots=True)
class Published:
    """A table of authors' figures.

    Attributes:
        title: Data and measure.
        source: Who says so.
        text: Lines of cells with | between them, the first one the heads of the columns.
    """

    title: str
    source: str
    text: str

    def to_markdown(self) -> str:
        """Title, table and source."""
        heads, *rows = ([cell.strip() for cell in line.split("|")] for line in self.text.strip().splitlines())
        return f"**{self.title}**\n\n{table(heads, rows)}\n\nThe authors' figures: {self.source}"


_MRM = "Zhou and others, *Advancing Radiograph Representation Learning with Masked Record Modeling*, ICLR 2023"
_REFERS = "Zhou and others, *Generalized Radiograph Representation Learning via Cross-supervision between Images and "
_REFERS += "Free-text Radiology Reports*, Nature Machine Intelligence 2022"
_XRAYS = "Xiao and others, *Delving into Masked Autoencoders for Multi-Label Thorax Disease Classification*, WACV 2023"
_MAE = "He and others, *Masked Autoencoders Are Scalable Vision Learners*, CVPR 2022"

PUBLISHED = (
    Published(
        "NIH ChestX-ray14, mean AUROC (%) by share of labels",
        f"{_MRM}; {_REFERS}. Pretrained on MIMIC-CXR. In brackets what the project that this one continues got when it "
        "trained them again.",
        """
method | 1 % | 10 % | 100 %
MRM | 79.4 (79.2) | 84.0 (84.1) | 85.9 (86.0)
REFERS | 76.7 (73.4) | 80.9 (79.0) | 84.7 (82.3)
REFERS, started from MRM | (76.6) | (80.7) | (83.8)
""",
    ),
    Published(
        "SIIM-ACR pneumothorax, Dice (%) by share of labels",
        f"{_MRM}; {_REFERS}. In brackets as above.",
        """
method | 10 % | 100 %
MRM | 73.2 (72.9) | 91.4
REFERS | 72.1 | 89.7
REFERS, started from MRM | (70.1) |
""",
    ),
    Published(
        "NIH ChestX-ray14, official split, mean AUROC (%), all labels",
        f"{_XRAYS}.",
        """
network | pretrained | AUROC
DenseNet-121 | supervised, ImageNet | 82.2
ResNet-50 | MoCo v2 / BYOL / SwAV, ImageNet | 80.9 / 81.0 / 81.5
DenseNet-121 | MoCo v2 / MAE, radiographs | 80.6 / 81.2
ViT-S | supervised / MAE, ImageNet | 79.6 / 78.6
ViT-S | MAE, radiographs | 82.3
ViT-B | MAE, radiographs | 83.0
""",
    ),
    Published(
        "Masked autoencoding, ViT-L on ImageNet, accuracy (%)",
        f"{_MAE}.",
        """
choice | fine-tuned | linear probe
random mask, 75 % | 84.9 | 73.5
block mask, 50 % | 83.9 | 72.3
block mask, 75 % | 82.8 | 63.9
grid mask, 75 % | 84.0 | 66.0
target: pixels | 84.9 | 73.5
target: pixels, normalised per patch | 85.4 | 73.9
target: PCA | 84.6 | 72.3
target: dVAE tokens | 85.3 | 71.6
decoder of 1 / 8 / 12 blocks | 84.8 / 84.9 / 84.4 | 65.5 / 73.5 / 73.3
decoder 128 / 512 wide | 84.9 / 84.9 | 69.1 / 73.5
encoder sees mask tokens | 84.2 | 59.6
crops of random size | 84.9 | 73.5
the same and colour jitter | 84.3 | 71.9
""",
    ),
    Published(
        "3D, mean Dice (%) over eleven data sets",
        "Wald and others, *Revisiting MAE Pre-training for 3D Medical Image Segmentation*, CVPR 2025.",
        """
method | Dice
S3D (masked autoencoding) | 72.4
Models Genesis | 71.8
VolumeFusion | 70.9
from scratch | 70.4
VoCo | 69.4
""",
    ),
)
