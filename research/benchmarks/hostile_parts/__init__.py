"""The parts of the benchmark `hostile`."""
