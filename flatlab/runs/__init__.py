"""What a run is on the disk."""
