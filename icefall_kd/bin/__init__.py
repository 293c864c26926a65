"""Commands: ``python -m icefall_kd.bin.<verb>``.  Each parses and calls the package."""
