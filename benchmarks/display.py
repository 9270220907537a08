"""Constants of the pictures of scans in the reports and the pages."""

SOFT_TISSUE_HU = (-160.0, 240.0)
"""SOFT_TISSUE_HU: the range of a CT that is displayed from black to white."""

VIEWS = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
"""VIEWS: the axes across and up, of an array whose axes run left-right, back-front, foot-head."""
