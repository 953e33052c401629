"""Relax operators of our own, one file per family; schedules/README.md says what each computes."""
