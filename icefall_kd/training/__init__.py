"""One training loop for the baseline and every distillation."""
