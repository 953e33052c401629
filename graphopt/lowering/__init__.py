"""From a Relax graph to a plan: fusion groups, candidates, one assignment, emission."""
