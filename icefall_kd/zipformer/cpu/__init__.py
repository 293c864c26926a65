"""Kernels that make the Zipformer fast on a CPU.

Each is one autograd function with a hand-written backward pass.  It works on blocks
that fit a core's cache and stores only what the backward pass needs.  The model files
one folder up read like the paper and call these kernels.
"""
