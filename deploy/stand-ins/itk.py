"""Stands in for the package itk, 1.5 GB, in the image.

MONAI Label imports it for the writer of its stock apps. This app writes masks with
`lib.imaging.mask_file`, so no function of itk is ever called.
"""
