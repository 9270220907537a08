"""The real sample scans: two spine crops from the wheel of TPTBox (Apache-2.0)."""

import hashlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from atomic import replacing

REQUIREMENT = "tptbox==1.1.0"
SUBREGION_NAMES = {
    41: "vertebral_arch",
    42: "spinous_process",
    43: "costal_process_left",
    44: "costal_process_right",
    45: "superior_articular_process_left",
    46: "superior_articular_process_right",
    47: "inferior_articular_process_left",
    48: "inferior_articular_process_right",
    49: "vertebral_body_border",
    50: "vertebral_body",
    60: "spinal_cord",
    61: "spinal_canal",
    62: "endplate",
    100: "disc",
}


@dataclass(frozen=True)
class Member:
    """A file inside the wheel, its SHA-256, and its path below the output folder."""

    source: str
    sha256: str
    target: str


MEMBERS = (
    Member(
        "tptbox-1.1.0.dist-info/licenses/LICENSE",
        "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
        "LICENSE-tptbox.txt",
    ),
    Member(
        "TPTBox/tests/sample_ct/sub-ct_seg-subreg_label-22_msk.nii.gz",
        "afb7fdf9770ac460e7ca50b5d2b13aeb2d13e44d179424a48750049b177e93b5",
        "labels/ct_spine.nii.gz",
    ),
    Member(
        "TPTBox/tests/sample_ct/sub-ct_label-22_ct.nii.gz",
        "51e09da4b00f8a22c17bfc55f63b8c21d2a9f6f1d3e4044143f29e12744abec9",
        "studies/ct_spine.nii.gz",
    ),
    Member(
        "TPTBox/tests/sample_mri/sub-mri_seg-subreg_label-6_msk.nii.gz",
        "34c7a3ddccee7b502951d96e0ccc0bf7498ff3f9c47a7bdfcefb51a7e3ca2785",
        "labels/mr_spine.nii.gz",
    ),
    Member(
        "TPTBox/tests/sample_mri/sub-mri_label-6_T2w.nii.gz",
        "961495b42cdfc02eaf50eb3f471d705793b82802fedb05f5f02aa5367528cf44",
        "studies/mr_spine.nii.gz",
    ),
)


class WheelError(Exception):
    """The wheel cannot be downloaded, or its content is not the expected one."""


def download_wheel(folder: Path) -> Path:
    """Download the wheel into ``folder`` with pip; raises WheelError with pip's last line."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    options = ["--no-deps", "--only-binary", ":all:", "--retries", "1", "--timeout", "20"]
    command = [*pip, *options, "--dest", str(folder), REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        raise WheelError(f"pip could not download {REQUIREMENT}: {reason[-1]}")
    return wheels[0]


def extract_members(wheel: Path, members: tuple[Member, ...], out: Path) -> None:
    """Check the SHA-256 of all members, then write each to its path below ``out``.

    Raises WheelError and writes nothing if the file is no wheel, or a member is missing or differs.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            contents = [archive.read(member.source) for member in members]
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise WheelError(f"{wheel} is not the expected wheel: {error}") from error
    for member, content in zip(members, contents, strict=True):
        digest = hashlib.sha256(content).hexdigest()
        if digest != member.sha256:
            raise WheelError(f"{member.source} in {wheel}: SHA-256 {digest}, not {member.sha256}")
    for member, content in zip(members, contents, strict=True):
        with replacing(out / member.target, out) as partial:
            partial.write_bytes(content)
