"""Writing several files so that either all of them appear or none."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from weights.errors import OutputError


@contextmanager
def atomic_directory(directory: str | os.PathLike[str], *, last: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write into; when the block ends well, its files move into `directory`.

    A new directory appears in one rename. Into an existing one the files are moved one by one, `last` at the end. If
    the block fails, nothing is left.

    Args:
        directory: where the files end up; its parents are created.
        last: the file that makes the others valid, such as the one that lists them.
        overwrite: replace files of the same name that are there already.

    Raises:
        OutputError: a file of the same name exists, or something cannot be created or written.
    """
    target = Path(directory)
    created: list[Path] = []
    staging: Path | None = None
    try:
        place = target if target.is_dir() else target.parent
        missing = [folder for folder in (place, *place.parents) if not folder.exists()]
        place.mkdir(parents=True, exist_ok=True)
        created = missing
        staging = Path(tempfile.mkdtemp(prefix=".incomplete-", dir=place))
        # Readable like any other new folder: mkdtemp's is private.
        mask = os.umask(0)
        os.umask(mask)
        staging.chmod(0o777 & ~mask)
        if (target / last).exists() and not overwrite:
            _refuse(target, [last])
        yield staging
        _publish(staging, target, last, overwrite=overwrite)
    except BaseException as error:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for folder in created:
            # Only the folders made here, and only while they are empty.
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, OSError):
            raise OutputError(f"cannot write to {target}: {error.strerror or error}") from error
        raise


def _refuse(target: Path, taken: list[str]) -> NoReturn:
    raise OutputError(f"{target} already holds {', '.join(taken)}; choose another folder or ask to overwrite")


def _publish(staging: Path, target: Path, last: str, *, overwrite: bool) -> None:
    """Move the finished files to their place."""
    if not target.exists():
        staging.rename(target)
        return
    if not target.is_dir():
        raise OutputError(f"cannot write to {target}: it is a file")
    files = sorted(staging.iterdir(), key=lambda path: (path.name == last, path.name))
    taken = [path.name for path in files if (target / path.name).exists()]
    if taken and not overwrite:
        _refuse(target, taken)
    for path in files:
        path.replace(target / path.name)
    staging.rmdir()
