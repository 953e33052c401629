"""From an ONNX file to a Relax graph: load, prepare, import, diagnose."""
