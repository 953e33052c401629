"""Compression: ONNX models become smaller or cheaper ONNX models, and say what that costs."""
