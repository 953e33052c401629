"""What graphopt knows of hardware: kernel families as compute definitions with their schedules."""
