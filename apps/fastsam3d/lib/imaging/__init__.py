"""Scans and masks in space.

box.py           half-open boxes of voxels
affine.py        RAS and LPS, the affine of an ITK image
volume.py        `read_volume`: a scan file or DICOM folder, checked
dicom_series.py  the slices of a DICOM series as one image, checked
intensity.py     the normalisation that the networks were trained with
roi.py           the cube that a network sees: place it, crop it, paste it back
interpolation.py the linear interpolation behind crop and paste
mask.py          a mask in memory, and the Dice of two masks
mask_file.py     a mask as a file or as the bytes of a file
"""
