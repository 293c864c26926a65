"""Modules of the Zipformer whose gradients are written by hand to be fast on a CPU."""
