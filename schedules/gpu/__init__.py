"""Kernel families for devices, OpenCL and CUDA alike: threads, blocks and shared memory."""
