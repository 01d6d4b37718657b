"""What a run is on the disk: its folder, which run it holds, what was measured of it; the only writer of it all."""
