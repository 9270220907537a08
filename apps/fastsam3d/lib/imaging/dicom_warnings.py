"""What a user should know about the slices of a DICOM series that is read all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydicom.dataset import Dataset

from lib.imaging.dicom_frames import value


def series_warnings(headers: Sequence[Dataset]) -> tuple[str, ...]:
    """Return the warnings about the headers of all slices."""
    return tuple(filter(None, (warn(headers) for warn in WARNINGS)))


def _warn_of_frames_of_reference(headers: Sequence[Dataset]) -> str:
    uids = {str(value(header, "FrameOfReferenceUID") or "") for header in headers}
    if uids != {""} and len(uids) == 1:
        return ""
    return (
        "the slices of the series have no common FrameOfReferenceUID; "
        "they were put together by their positions"
    )


def _warn_of_rescaling(headers: Sequence[Dataset]) -> str:
    for tag in ("RescaleIntercept", "RescaleSlope"):
        lacking = sum(value(header, tag) in (None, "") for header in headers)
        if 0 < lacking < len(headers):
            return (
                f"{lacking} of {len(headers)} slices have no {tag}, which the others have; "
                "their values are used as stored"
            )
    if lacks_scale(headers):
        return (
            "the CT has no RescaleIntercept, so its values are used as stored; they may be no "
            "Hounsfield units"
        )
    return ""


def lacks_scale(headers: Sequence[Dataset]) -> bool:
    """Return whether no slice of a CT says what its values are."""
    is_ct = value(headers[0], "Modality") == "CT"
    return is_ct and all(value(header, "RescaleIntercept") in (None, "") for header in headers)


def _warn_of_lookup_tables(headers: Sequence[Dataset]) -> str:
    if not has_lookup_table(headers):
        return ""
    return (
        "the series has a ModalityLUTSequence, which is not applied; its values are those that "
        "are stored"
    )


def has_lookup_table(headers: Sequence[Dataset]) -> bool:
    """Return whether a table, and not slope and intercept, gives the values of any slice."""
    return any(value(header, "ModalityLUTSequence") for header in headers)


def _warn_of_inversion(headers: Sequence[Dataset]) -> str:
    if not is_inverted(headers):
        return ""
    return (
        "the series is stored as MONOCHROME1 (low is bright); its values are inverted, so they are "
        "no Hounsfield units"
    )


def is_inverted(headers: Sequence[Dataset]) -> bool:
    """Return whether any slice is stored inverted; ITK turns its values round."""
    return any(value(header, "PhotometricInterpretation") == "MONOCHROME1" for header in headers)


WARNINGS: tuple[Callable[[Sequence[Dataset]], str], ...] = (
    _warn_of_frames_of_reference,
    _warn_of_rescaling,
    _warn_of_lookup_tables,
    _warn_of_inversion,
)
