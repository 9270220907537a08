"""A slice whose values a table gives (PS3.3, C.11.1)."""

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

LUT_DATA = 0x00283006
"""LUT_DATA: tag of the table, whose type depends on its use."""


def add_lookup_table(slice_header: Dataset) -> None:
    """Add a table of 4,096 values of 16 bits to a slice."""
    table = Dataset()
    table.LUTDescriptor = [4096, 0, 16]
    table[LUT_DATA] = DataElement(LUT_DATA, "OW", bytes(2 * 4096))
    table.ModalityLUTType = "US"
    slice_header.ModalityLUTSequence = [table]
