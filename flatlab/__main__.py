"""`python -m flatlab`."""

from flatlab.cli import main

if __name__ == "__main__":
    main()
