"""What programs are compiled for: processors and devices."""
