"""The HTTP server: the routes that the app adds to MONAI Label's, or puts in their place.

- ``install.py``: puts the routes into the running server; the HTTP status of each error
- ``infer.py``: a mask from clicks, saving a label; ``reply.py``: responses that hold a mask
- ``images.py``: opening an image; ``find_image.py``: the image that a request is about;
  ``read_ahead.py``: prefetching it
- ``train.py``: trainings, and the versions of the weights that they publish
- ``viewer.py``: the viewer at /viewer/; ``viewer_package.py``: its files, fetched once
- ``pacs_proxy.py``: DICOMweb for the viewers; ``folder_dicomweb.py`` and ``folder_series.py``: the
  same for a folder of files
- ``ohif.py``: the stock viewer at /ohif/
- ``auth.py``: roles; ``form_json.py``: JSON in form fields; ``app_instance.py``: the app as the
  routes see it
"""
