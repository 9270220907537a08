"""The HTTP server: the app's own routes, in place of MONAI Label's.

- ``install.py``: puts the routes into the running server; the HTTP status of each error
- ``routes.py``: the table of all routes, and which ones need the key
- ``doors.py``: what is checked of every request; ``credentials.py``: the key and its tokens;
  ``sign_in.py``: signing in; ``audit.py``: a line for each change
- ``infer.py``: a mask from clicks; ``reply.py``: responses that hold a mask
- ``labels.py``: saving a label, its versions
- ``images.py``: opening an image; ``uploads.py``: files that come in; ``names.py``: IDs and tags;
  ``find_image.py``: the image that a request is about; ``read_ahead.py``: prefetching it
- ``train.py``: trainings, and the versions of the weights that they publish
- ``viewer.py``: the viewer at /viewer/; ``viewer_package.py``: its files, fetched once
- ``pacs_proxy.py``: DICOMweb for the viewers; ``folder_dicomweb.py`` and ``folder_series.py``: the
  same for a folder of files
- ``ohif.py``: the stock viewer at /ohif/; ``system.py``: the server about itself
- ``auth.py``: roles; ``form_json.py``: JSON in form fields; ``app_instance.py``: the app as the
  routes see it
- ``temporary_folder.py``, ``upload_sessions.py``: private files, gone after their use
"""
