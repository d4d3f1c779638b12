"""What the networks learned, as images."""
