"""Studies on a DICOM server, as a MONAI Label datastore.

- ``dicomweb.py``: reads series by DICOMweb and checks their geometry; saves labels
- ``dicom_seg.py``: writes the DICOM-SEG objects that labels are sent as

Studies in a folder use MONAI Label's own ``LocalDatastore``.
"""
