"""Kernels that make the Zipformer fast on a CPU.

A kernel is an autograd function with a hand-written backward pass.  Most kernels
process blocks that fit a core's cache, and store only what the backward pass needs.
The modules in the parent folder call these kernels.
"""
