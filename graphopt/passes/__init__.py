"""The ordered passes over graphopt.ir.Graph: rewriting, recovery of operators and cleaning up."""
