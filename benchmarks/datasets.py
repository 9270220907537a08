"""Labelled scans in common layouts: their files and their structures.

A folder is read as the first of these that fits:
- a folder with `manifest.csv` (columns source, case, image, label, and optionally part),
- an nnU-Net folder (`imagesTr/CASE_0000.nii.gz`, `labelsTr`, `dataset.json`; the first channel is
  used),
- a BIDS-like folder (`sub-*/**/*.nii.gz` with labels `*dseg*`, `*label*` or `*mask*` below
  `derivatives`),
- a folder of such folders, each of which is a source.
A file is read as a MONAI datalist. Hidden files are no scans. A case whose file is missing is found
too: `read_case` names it, and the others go on.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes

from lib.errors import InputError
from lib.imaging.image_checks import is_hidden
from lib.imaging.nifti_file import NIFTI_ERRORS
from lib.imaging.volume import Volume, grid_distance_mm, read_label_map, read_volume

EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
ENCODING = "utf-8-sig"
"""ENCODING: UTF-8, with or without the byte order mark that Windows puts first."""

IGNORE = "ignore"
"""IGNORE: nnU-Net's name for voxels that nobody labelled."""

LABEL_WORDS = ("dseg", "label", "mask")
EXPECTED = (
    "expected a folder with manifest.csv, an nnU-Net folder (imagesTr, labelsTr, dataset.json), a "
    "BIDS-like folder (sub-*, derivatives), a folder of such folders, or a MONAI datalist (.json)"
)

Structures = Mapping[str, tuple[int, ...]]
"""Structures: by name, the label values of each structure."""


@dataclass(frozen=True)
class BenchmarkCase:
    """The files of a scan and its label map.

    structures: from the data set; empty if it names none. ignored: label values of voxels that are
    not to be scored (nnU-Net's label "ignore").
    """

    source: str
    name: str
    image: Path
    label: Path
    structures: Structures = field(default_factory=dict)
    modality: str = ""
    ignored: tuple[int, ...] = ()


def find_cases(data: Path, part: str | None = None) -> list[BenchmarkCase]:
    """Return all cases of a data set in its order; raises InputError if there are none.

    part: a value of the manifest's column `part` (default: "eval" if present, else all), nnU-Net's
    "Tr" (default) or "Ts", or the name of a list of the datalist (default: all lists).
    """
    if not data.exists():
        raise InputError(f"{data} does not exist; {EXPECTED}")
    if data.is_file():
        return _datalist_cases(data, part)
    cases = _folder_cases(data, part)
    if cases is None:
        folders = [path for path in sorted(data.iterdir()) if path.is_dir()]
        cases = [case for folder in folders for case in _folder_cases(folder, part) or ()]
    if not cases:
        raise InputError(f"no labelled scans in {data}; {EXPECTED}")
    return cases


def _folder_cases(folder: Path, part: str | None) -> list[BenchmarkCase] | None:
    """Return the cases of a folder that is a data set itself, else None."""
    if (folder / "manifest.csv").is_file():
        return _manifest_cases(folder, part)
    if (folder / f"labels{part or 'Tr'}").is_dir():
        return _nnunet_cases(folder, part or "Tr")
    if (folder / "dataset.json").is_file():
        return _datalist_cases(folder / "dataset.json", part)
    if any(folder.glob("sub-*")) and (folder / "derivatives").is_dir():
        return _bids_cases(folder)
    return None


def _manifest_cases(folder: Path, part: str | None) -> list[BenchmarkCase]:
    with open(folder / "manifest.csv", encoding=ENCODING, newline="") as file:
        reader = csv.DictReader(file)
        missing = {"source", "case", "image", "label"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(
                f"{folder / 'manifest.csv'} lacks columns: {', '.join(sorted(missing))}"
            )
        rows = [row for row in reader if row["image"] and row["label"]]
    parts = sorted({row.get("part") or "" for row in rows})
    selected_part = part or ("eval" if "eval" in parts else None)
    if part and part not in parts:
        raise InputError(
            f"{folder / 'manifest.csv'} has no part {part!r}; it has {', '.join(parts)}"
        )
    return [
        BenchmarkCase(
            row["source"],
            row["case"],
            folder / row["image"],
            folder / row["label"],
            _flat_names(_read_json((folder / row["label"]).parent / "labels.json")),
            row.get("modality") or "",
        )
        for row in rows
        if selected_part in (None, row.get("part")) and (folder / row["image"]).is_file()
    ]


def _nnunet_cases(folder: Path, part: str) -> list[BenchmarkCase]:
    description = _read_json(folder / "dataset.json")
    structures = _flat_names(description.get("labels", {}))
    ignored = structures.pop(IGNORE, ())
    channels = description.get("channel_names") or description.get("modality") or {}
    modality = str(channels.get("0", "")) if isinstance(channels, dict) else ""
    source = str(description.get("name") or folder.resolve().name)
    cases = []
    for label in _images_in(folder / f"labels{part}"):
        name = _stem(label)
        images = folder / f"images{part}"
        image = _first_file(images, (f"{name}_0000", name)) or images / f"{name}_0000.nii.gz"
        cases.append(BenchmarkCase(source, name, image, label, structures, modality, ignored))
    return cases


def _datalist_cases(path: Path, part: str | None) -> list[BenchmarkCase]:
    content = _read_json(path)
    lists = content if isinstance(content, dict) else {"training": content}
    lists = {name: entries for name, entries in lists.items() if _is_datalist(entries)}
    if not lists or (part and part not in lists):
        raise InputError(
            f"{path} has no list {part or 'of images and labels'}; expected a MONAI datalist: "
            '{"training": [{"image": "…", "label": "…"}, …]}'
        )
    structures = _flat_names(content.get("labels", {}) if isinstance(content, dict) else {})
    ignored = structures.pop(IGNORE, ())
    source = path.stem if path.stem not in ("dataset", "datalist") else path.resolve().parent.name
    cases = []
    for entry in (entry for name in lists if part in (None, name) for entry in lists[name]):
        if not isinstance(entry, dict):
            continue
        images, labels = _paths(entry.get("image")), _paths(entry.get("label"))
        for label in labels if images else ():
            image = path.parent / images[0]
            name = str(entry.get("case") or _stem(image))
            if len(labels) > 1:  # one label map for each structure or reader
                name = f"{name} {_stem(Path(label))}"
            entry_source = str(entry.get("source") or source)
            cases.append(
                BenchmarkCase(
                    entry_source, name, image, path.parent / label, structures, "", ignored
                )
            )
    return cases


def _paths(value: Any) -> list[str]:
    """Return the paths of an entry: one, several, or none."""
    values = value if isinstance(value, list) else [value]
    return [path for path in values if isinstance(path, str) and path]


def _is_datalist(entries: Any) -> bool:
    """Return whether a list has entries with image and label; others are unlabelled scans."""
    return isinstance(entries, list) and any(
        isinstance(entry, dict) and _paths(entry.get("image")) and _paths(entry.get("label"))
        for entry in entries
    )


def _bids_cases(folder: Path) -> list[BenchmarkCase]:
    """Pair each label map of `derivatives` with its subject's image of the most similar name."""
    cases = []
    for label in _images_in(folder / "derivatives"):
        words = set(_stem(label).split("_"))
        subject = next((word for word in words if word.startswith("sub-")), None)
        if subject is None or not any(word in label.name.lower() for word in LABEL_WORDS):
            continue
        images = [path for path in _images_in(folder / subject) if _same_session(path, words)]
        absent = folder / subject / f"{subject}.nii.gz"
        image = max(
            images, key=lambda path: len(words & set(_stem(path).split("_"))), default=absent
        )
        names = _segmentation_names(label, folder)
        cases.append(BenchmarkCase(folder.resolve().name, _stem(label), image, label, names))
    return cases


def _same_session(image: Path, words: set[str]) -> bool:
    sessions = {word for word in words if word.startswith("ses-")}
    return sessions <= set(_stem(image).split("_"))


def _segmentation_names(label: Path, folder: Path) -> Structures:
    """Read the names from the BIDS table beside a label map, or from the table for all of them."""
    tables = [
        label.with_name(f"{_stem(label)}.tsv"),
        *sorted(folder.glob("derivatives/**/dseg.tsv")),
    ]
    for table in tables:
        if table.is_file():
            with open(table, encoding=ENCODING, newline="") as file:
                rows = list(csv.DictReader(file, delimiter="\t"))
            return _flat_names({row.get("name") or "": _integer(row.get("index")) for row in rows})
    return {}


def _flat_names(names: Any) -> dict[str, tuple[int, ...]]:
    """Return values by name for `{"1": "liver"}`, `{"liver": 1}` or `{"kidneys": [2, 3]}`.

    Names without a whole number are left out, and so is the background.
    """
    structures: dict[str, tuple[int, ...]] = {}
    for key, value in names.items() if isinstance(names, dict) else ():
        if isinstance(value, str) and key.isdigit():
            structures[value] = (*structures.get(value, ()), int(key))
        else:
            numbers = [_integer(each) for each in (value if isinstance(value, list) else [value])]
            structures[key] = tuple(number for number in numbers if number is not None)
    return {name: values for name, values in structures.items() if name and set(values) - {0}}


def _integer(value: Any) -> int | None:
    """Return a value as a whole number; None if it is none."""
    try:
        number = float(value)
        return int(number) if number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return None


def _images_in(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.name.lower().endswith(EXTENSIONS))
    return sorted(path for path in found if not is_hidden(path))


def _first_file(folder: Path, stems: Iterable[str]) -> Path | None:
    paths = (folder / f"{stem}{extension}" for stem in stems for extension in EXTENSIONS)
    return next((path for path in paths if path.is_file()), None)


def _stem(path: Path) -> str:
    extension = next((end for end in EXTENSIONS if path.name.lower().endswith(end)), path.suffix)
    return path.name[: len(path.name) - len(extension)]


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, or {} if there is none."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding=ENCODING))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error


@contextmanager
def with_one_volume(case: BenchmarkCase) -> Iterator[BenchmarkCase]:
    """Yield a case with a 3D image.

    A NIfTI file of several channels, as in the Medical Segmentation Decathlon, is replaced by a
    temporary file of its first one. Raises InputError if the image cannot be read.
    """
    try:
        stored: Any = nibabel.load(case.image)
        shape = stored.shape
    except NIFTI_ERRORS:
        shape = ()  # no NIfTI, or damaged; reading the image says so
    if len(shape) != 4 or shape[3] == 1:
        yield case
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, case.image.name)
        nibabel.save(stored.slicer[..., 0], path)
        yield replace(case, image=path)


def read_case(case: BenchmarkCase) -> tuple[Volume, Volume]:
    """Return image and label map; raises InputError unless both have the same grid."""
    image, labels = read_volume(case.image), read_label_map(case.label)
    if image.shape_ijk != labels.shape_ijk:
        raise InputError(
            f"{case.name}: the image has {image.shape_ijk} voxels, its label map "
            f"{labels.shape_ijk}; resample the label map onto the image"
        )
    apart_mm = grid_distance_mm(image, labels)
    if apart_mm > 0.5 * voxel_sizes(image.affine_mm).min():
        raise InputError(
            f"{case.name}: image and label map lie {apart_mm:.1f} mm apart in space; "
            "give the label map the image's geometry"
        )
    return image, labels


def ignored_voxels(case: BenchmarkCase, labels: Volume) -> np.ndarray | None:
    """Return the voxels that are not to be scored, (I, J, K) bool; None if all are."""
    return np.isin(labels.array, case.ignored) if case.ignored else None


def targets(
    case: BenchmarkCase, labels: Volume, min_mm3: float
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and mask, (I, J, K) bool, of each structure of at least `min_mm3`."""
    voxel_mm3 = abs(np.linalg.det(labels.affine_mm[:3, :3]))
    counts = np.bincount(labels.array.ravel(order="K"))
    present = set(np.flatnonzero(counts).tolist()) - {0, *case.ignored}
    volume_mm3 = {value: counts[value] * voxel_mm3 for value in sorted(present)}
    named = case.structures or {str(value): (value,) for value in volume_mm3}
    unnamed = present - {value for values in named.values() for value in values}
    for name, numbers in (*named.items(), *((str(value), (value,)) for value in sorted(unnamed))):
        if sum(volume_mm3.get(value, 0) for value in numbers) >= min_mm3:
            yield name, np.isin(labels.array, numbers)


def choose_cases(
    cases: Iterable[BenchmarkCase], per_source: int | None, min_mm3: float
) -> list[BenchmarkCase]:
    """Return the first `per_source` cases of each source that have a structure; None: all."""
    if per_source is None:
        return list(cases)
    counts: dict[str, int] = {}
    selected = []
    for case in cases:
        if counts.get(case.source, 0) < per_source and _has_target(case, min_mm3):
            counts[case.source] = counts.get(case.source, 0) + 1
            selected.append(case)
    return selected


def _has_target(case: BenchmarkCase, min_mm3: float) -> bool:
    """Return whether a case has a structure; True also if its label map cannot be read.

    The measurement reports an unreadable label map.
    """
    try:
        return next(targets(case, read_label_map(case.label), min_mm3), None) is not None
    except InputError:
        return True
