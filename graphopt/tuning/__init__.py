"""Tuning: tasks, the measuring of candidates, records of it, the cost model and the search."""
