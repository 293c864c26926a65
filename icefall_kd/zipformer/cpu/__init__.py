"""Kernels that make the Zipformer fast on a CPU.

A kernel is an autograd function with a hand-written backward pass.  Most kernels
compute blocks that fit a core's cache, and store only what the backward pass needs.
The model files in the parent folder read like the paper and call these kernels.
"""
