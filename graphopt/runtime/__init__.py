"""Runs compiled programs; nothing here imports the compiler (`tvm`) or `onnx`."""
