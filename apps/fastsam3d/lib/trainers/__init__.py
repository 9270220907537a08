"""The trainers of the app as MONAI Label train tasks; there is none yet."""
