"""Compiles device functions for NVIDIA GPUs; needs neither a GPU nor a driver."""
