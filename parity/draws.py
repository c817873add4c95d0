"""Random numbers that two frameworks share: drawn by name, so that the order in which anybody asks is of no matter."""

import hashlib

import numpy as np


class Draws:
    """A counter-based generator keyed by (seed, step, name, call).

    Every request is answered from a stream of its own, so a port that leaves one draw out, or makes one more, shifts
    none of the others.

    Args:
        seed: Tells one experiment from another.

    Attributes:
        step: Number of the training step that is being drawn for.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.step = 0

    def generator(self, name: str, call: int = 0) -> np.random.Generator:
        """A NumPy generator of its own for one name and call in the present step."""
        key = hashlib.sha256(f"{self.seed}|{self.step}|{name}|{call}".encode()).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))

    def keep(self, path: str, call: int, shape: tuple[int, ...], rate: float) -> np.ndarray:
        """Which elements one call of one dropout layer keeps.

        Args:
            path: Path of the layer in the reference.
            call: 0 for its first call in the step, 1 for the second ...
            shape: Shape of its input in the reference's layout.
            rate: Share of the elements to drop.

        Returns:
            Booleans of that shape.
        """
        return self.generator(f"dropout|{path}", call).random(shape) >= rate
