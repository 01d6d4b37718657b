"""`python -m flatlab`."""

from flatlab.cli.main import main

if __name__ == "__main__":
    main()
