"""Scans and masks in space.

box.py           half-open boxes of voxels
affine.py        RAS and LPS, the affine of an ITK image
volume.py        `read_volume`: a scan file or DICOM folder, checked; `read_label_map`
image_checks.py  the checks of every image, and the limit to its voxels
nifti_file.py    a NIfTI file: voxels by nibabel, geometry by ITK
itk_file.py      a file of another format, after a look at its text
dicom_series.py  the slices of a DICOM series as one image, checked
dicom_frames.py  the slices of single-frame and multi-frame DICOM files
dicom_checks.py  the checks of DICOM slices and of their stack
dicom_warnings.py  what a user should know about a series that is read all the same
intensity.py     the normalisation that the networks were trained with
roi.py           the cube that a network sees: place it, crop it, paste it back
interpolation.py the linear interpolation behind crop and paste
mask.py          a mask in memory, and the Dice of two masks
mask_file.py     a mask as a file or as the bytes of a file
"""
