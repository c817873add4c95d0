"""TensorFlow's own constants of attention: the package's only file that imports TensorFlow, and only in a function.

It is also a program, run by `constants` so that TensorFlow need not be loaded into a PyTorch process. For that reason
it imports nothing else of this package.
"""

import json
import sys

import numpy as np


def tensorflow_constants(
    m: int, d: int, seed: int, rows: int | None, bfloat16: bool
) -> tuple[np.ndarray, np.ndarray | None, str]:
    """Compute projection matrix and rotary table with TensorFlow.

    Args:
        m: random features.
        d: head size.
        seed: of the projection matrix.
        rows: of the rotary table; None for a model without one.
        bfloat16: round the table to bfloat16.

    Returns:
        float32 matrix (m, d), float32 table (rows, d) or None, and TensorFlow's version as their origin.

    Raises:
        ImportError: TensorFlow or the reference is not installed.
    """
    import tensorflow

    from tf_reference import constants

    matrix = constants.projection_matrix(m, d, seed)
    table = None if rows is None else constants.rotary_table(rows, d, bfloat16=bfloat16)
    return matrix, table, f"tensorflow {tensorflow.__version__}"


def main() -> None:
    """Compute what the JSON in the first argument asks for and write it to the `.npz` file that it names."""
    arguments = json.loads(sys.argv[1])
    sys.path[:] = arguments["path"]
    matrix, table, origin = tensorflow_constants(**arguments["sizes"])
    found = {"matrix": matrix, "origin": np.array(origin)}
    if table is not None:
        found["table"] = table
    np.savez(arguments["file"], allow_pickle=False, **found)


if __name__ == "__main__":
    main()
