"""`python -m peft_surgical.cli`, where the `peft-surgical` script is not on the path."""

from .app import main

if __name__ == "__main__":
    main()
