"""The scans of the adaptation benchmark: those with saved labels, and those that are measured."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import nibabel as nib
import numpy as np

from lib.datastore.safe_store import FolderDatastore
from lib.errors import InputError
from lib.imaging.volume import read_label_map

from .datasets import EXTENSIONS, BenchmarkCase, Structures, read_case, targets, with_one_volume
from .protocols import MIN_MM3


@dataclass(frozen=True)
class Selection:
    """The cases whose labels are saved, other cases of their source, and cases of other sources."""

    labelled: list[BenchmarkCase]
    same: list[BenchmarkCase]
    others: list[BenchmarkCase]


def select(
    cases: Sequence[BenchmarkCase], source: str, labelled: int, others: int, names: Sequence[str]
) -> Selection:
    """Select the cases; raises InputError if the source has too few.

    labelled: number of cases whose labels are saved, the first ones of the source that have a
    structure. others: at most so many structures of other sources. names: the structures that are
    saved; empty: all.
    """
    sources = sorted({case.source for case in cases})
    if source not in sources:
        raise InputError(f"--source {source}: there are {', '.join(sources)}")
    own = [case for case in cases if case.source == source and structures_of(case)]
    usable = [case for case in own if not names or set(names) & set(structures_of(case))]
    chosen = usable[:labelled]
    if len(chosen) < labelled or len(own) == labelled:
        raise InputError(
            f"--labelled {labelled}: {source} has {len(own)} cases with a structure of "
            f"{MIN_MM3:.0f} mm³, {len(usable)} of them with one to save; at least one must be left"
        )
    rest = [case for case in own if case not in chosen]
    return Selection(chosen, rest, limited((c for c in cases if c.source != source), others))


def structures_of(case: BenchmarkCase) -> list[str]:
    """Return the names of a case's structures that are large enough; none if it is unreadable."""
    try:
        return [name for name, _ in targets(case, read_label_map(case.label), MIN_MM3)]
    except InputError:
        return []


def limited(cases: Iterable[BenchmarkCase], most: int) -> list[BenchmarkCase]:
    """Return cases of the sources in turns, with at most `most` structures together."""
    chosen, count = [], 0
    for case in _in_turns(cases):
        structures = len(structures_of(case))
        if structures and count + structures <= most:
            chosen.append(case)
            count += structures
    return chosen


def _in_turns(cases: Iterable[BenchmarkCase]) -> Iterator[BenchmarkCase]:
    groups: dict[str, list[BenchmarkCase]] = {}
    for case in cases:
        groups.setdefault(case.source, []).append(case)
    for turn in zip_longest(*groups.values()):
        yield from (case for case in turn if case is not None)


def write_site(cases: Sequence[BenchmarkCase], names: Sequence[str], folder: Path) -> None:
    """Write a folder of studies with saved labels, by the app's datastore.

    names: the structures that are saved; empty: all. Raises InputError if a case cannot be used.
    """
    folder.mkdir(parents=True)
    store = FolderDatastore(
        str(folder), extensions=[f"*{end}" for end in EXTENSIONS], auto_reload=False
    )
    for case in cases:
        with with_one_volume(case) as readable, tempfile.TemporaryDirectory() as temporary:
            _, labels = read_case(readable)
            study = study_name(case)
            extension = next(end for end in EXTENSIONS if readable.image.name.endswith(end))
            image = Path(temporary, f"{study}{extension}")
            shutil.copy(readable.image, image)
            store.add_image(study, str(image), {})
            saved = saved_structures(case, labels.array, names)
            kept = np.isin(labels.array, [value for values in saved.values() for value in values])
            label = Path(temporary, "label.nii.gz")
            voxels = np.where(kept, labels.array, 0).astype(np.uint16)
            nib.save(nib.Nifti1Image(voxels, labels.affine_mm), label)
            info = [
                {"name": name, "idx": value} for name, values in saved.items() for value in values
            ]
            store.save_label(study, str(label), "final", {"label_info": info})


def study_name(case: BenchmarkCase) -> str:
    return f"{case.source}-{case.name}".replace(" ", "_")


def saved_structures(case: BenchmarkCase, labels: np.ndarray, names: Sequence[str]) -> Structures:
    """Return the structures of a case to save; all of its label values if it names none."""
    present = np.unique(labels)
    named = case.structures or {str(value): (int(value),) for value in present if value}
    return {name: values for name, values in named.items() if not names or name in names}
