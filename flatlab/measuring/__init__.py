"""What `eigs`, `trace`, `density` and `surface` do: open, measure, save, show side by side, draw."""
