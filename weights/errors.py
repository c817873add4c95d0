"""Everything that can be wrong with a checkpoint, as one family of exceptions.

All derive from `CheckpointError`, which is a `ValueError`: bad input, never a programming mistake. The command line
turns any of them into one message on standard error and exit status 2.
"""


class CheckpointError(ValueError):
    """The checkpoint, or the request made of it, cannot be honoured. The message says what and where."""


class NotACheckpointError(CheckpointError):
    """The path is no TensorFlow checkpoint, SavedModel or Keras weights file, or cannot be read."""


class CorruptCheckpointError(CheckpointError):
    """A checksum, a length or a structure in the file is wrong. The message names the tensor where one is concerned."""


class MissingShardError(CheckpointError):
    """A data file that the index names is not there."""


class UnsupportedCheckpointError(CheckpointError):
    """The file is sound but uses something this reader refuses: compression, partitioned variables, an odd dtype."""


class MappingError(CheckpointError):
    """Keys, shapes, data types or values of checkpoint and model do not match one to one. The message lists all."""


class ConfigurationError(CheckpointError):
    """The shapes in the checkpoint contradict each other or the model's configuration. The message lists all."""


class OutputError(CheckpointError):
    """The result cannot be written there. Nothing is left behind."""


def listing(title: str, lines: list[str]) -> str:
    """Format one section of an error message: the title, the count and every line."""
    return f"{title} ({len(lines)}):\n" + "\n".join(f"  {line}" for line in lines)
