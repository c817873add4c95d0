"""``python -m parity``: the same as ``epibert parity``."""

from parity.command import main, parity

if __name__ == "__main__":
    main(components=parity, program="python -m parity")
