"""What `eigs`, `trace`, `density`, `surface` and `verify` compute, as plain data."""
