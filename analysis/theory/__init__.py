"""The theory behind MAN, taken apart into statements that are checked one by one (docs/theory.md)."""
