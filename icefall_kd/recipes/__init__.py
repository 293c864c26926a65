"""Recipes in ``egs/``: system names, profiles, and the commands that they stand for."""
