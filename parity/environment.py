"""What a result was measured with: versions, machine, and hashes of the content that it speaks about."""

import hashlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch_impl", "tf_reference", "weights", "parity")
RECORDED_WITH = "recorded with"
"""What a result calls the environment of a reference that was recorded elsewhere."""

DISTRIBUTIONS = (
    "torch",
    "tensorflow",
    "tf_keras",
    "numpy",
    "scipy",
    "h5py",
    "safetensors",
    "lightning",
    "torchmetrics",
)


def describe_environment() -> dict[str, Any]:
    """Versions of what computes, the machine, and one hash for the sources of each package."""
    import torch

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: version(name) for name in DISTRIBUTIONS},
        "sources": {name: hash_sources(ROOT / name) for name in PACKAGES if (ROOT / name).is_dir()},
    }


def version(distribution: str) -> str | None:
    """Installed version of a distribution, None when it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def hash_sources(folder: Path) -> str:
    """sha256 over names and contents of all source files of a package, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".json", ".jinja", ".css", ".js"):
            digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def processor() -> str:
    """Name of the processor, as the system tells it."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
