"""What belongs together is to be more alike than what does not."""

from __future__ import annotations

import torch
from torch.nn import functional as F

TEMPERATURE = 0.1


def contrast(images: torch.Tensor, reports: torch.Tensor, temperature: float, share: float) -> torch.Tensor:
    """How badly images find their reports among all of a batch, and reports their images.

    ``share`` l(image to report) + (1 - ``share``) l(report to image), each the mean over the batch of the cross-entropy
    of cosines over the temperature (Zhang and others, ConVIRT, MLHC 2022). Gradients flow into both by both terms.

    Args:
        images: Shape (n, width).
        reports: The same, row by row what belongs to the images.
        temperature: Above 0; the lower, the more counts what is most alike.
        share: From 0 to 1.

    Returns:
        A single number; 0 if all is found for sure, log(n) by chance.
    """
    likeness = F.normalize(images, dim=1) @ F.normalize(reports, dim=1).T / temperature
    own = torch.arange(len(likeness), device=likeness.device)
    return share * F.cross_entropy(likeness, own) + (1 - share) * F.cross_entropy(likeness.T, own)


def found_among(images: torch.Tensor, reports: torch.Tensor, most: int = 10) -> torch.Tensor:
    """Whether the own report of each image is among the ``most`` most alike; of equals, their mean place counts.

    Args:
        images: Shape (n, width).
        reports: The same, row by row what belongs to the images.
        most: How many are looked at.

    Returns:
        From 0 to 1, shape (n,); the mean is the recall.
    """
    likeness = F.normalize(images.double(), dim=1) @ F.normalize(reports.double(), dim=1).T
    own = likeness.diagonal()[:, None]
    before, equal = (likeness > own).sum(1), (likeness == own).sum(1)
    return ((most - before) / equal).clamp(0, 1)
