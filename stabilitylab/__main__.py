"""``python -m stabilitylab`` runs ``stablab``."""

from stabilitylab.cli import main

if __name__ == "__main__":
    main()
