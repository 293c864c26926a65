"""Is this machine's stack one that works together?  See icefall_kd.bin.doctor.

packages.py says what is needed, probe.py imports it out of harm's way, rules.py says
which versions go together, checks.py judges.
"""
