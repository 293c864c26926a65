"""Check that the installed packages work together; see icefall_kd.bin.doctor.

``packages.py`` lists the packages and imports each in a child process.  ``checks.py``
compares their versions.
"""
