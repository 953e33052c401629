"""Quantization after training: statistics → plan → QDQ model, and a report on what it costs."""
