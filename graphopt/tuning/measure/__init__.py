"""The measure server: a process that builds, checks and times candidates in children of its own."""
