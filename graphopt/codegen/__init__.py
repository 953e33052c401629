"""From scheduled kernels and a plan to machine code."""
