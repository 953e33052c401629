"""OpenCL devices: our runtime plug-in for TVM, how it is built and loaded, and what it finds."""
