"""What several benchmarks use; none of it is a benchmark itself."""
