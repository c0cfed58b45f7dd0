"""Benchmarks: the cost of a step, a prediction and a batch on this machine."""
