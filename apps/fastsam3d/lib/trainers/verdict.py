"""Whether a student takes the place of the served one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Verdict:
    """reason: for the user, with the numbers."""

    is_better: bool
    reason: str


def judge(candidate: Tensor, served: Tensor, min_gain: float) -> Verdict:
    """Is a student measurably better?

    candidate, served: (ROIs, numbers of clicks) Dice with the same clicks. The mean must rise by
    ``min_gain``, and by more than the standard error of the rise over the ROIs, which chance gives.
    """
    gains = (candidate - served).mean(dim=1)
    gain, count = float(gains.mean()), len(gains)
    error = float(gains.std(correction=1) / count**0.5) if count > 1 else 0.0
    numbers = (
        f"mean Dice {float(candidate.mean()):.3f} against {float(served.mean()):.3f} of the served "
        f"student on {count} held-out ROIs, a gain of {gain:.3f} ± {error:.3f}"
    )
    if gain < min_gain:
        return Verdict(False, f"{numbers}, but {min_gain:g} is needed")
    if gain <= error:
        return Verdict(False, f"{numbers}, which may be chance; more val_rois would tell")
    return Verdict(True, numbers)
