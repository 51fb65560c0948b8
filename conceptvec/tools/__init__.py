"""What stands beside a run: search, preflight, self-check, calibration and benchmarks."""
