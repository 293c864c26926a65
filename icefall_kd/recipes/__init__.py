"""Names of systems, profiles and commands of the recipes in ``egs/``."""
