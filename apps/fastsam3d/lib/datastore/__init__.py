"""The studies, in a folder or on a DICOM server, as MONAI Label datastores, and their history.

- ``safe_store.py``: images and labels in a folder, written so that nothing is lost;
  ``listed_files.py``: which ones there are; ``stored_list.py``: the list of them on the disk
- ``label_files.py``: reads a label and compares it with its image; ``label_history.py``: versions
- ``journal.py``: each mask that a client asked for
- ``fetched_series.py``: reads series by DICOMweb and checks their geometry;
  ``series_sizes.py``: notices those that still arrive; ``dicomweb.py``: their labels;
  ``pacs_client.py``: what DICOMweb servers do differently, and wrongly
- ``dicom_seg.py``: writes the DICOM-SEG objects that labels are sent as
"""
