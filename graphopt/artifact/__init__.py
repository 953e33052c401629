"""The `.gopt` file: one sealed zip with compiled programs, their weights and their manifest."""
