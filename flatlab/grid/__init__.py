"""Grids of runs: planned, carried out, measured."""
