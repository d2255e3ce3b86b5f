"""Where data lie: --data_dir, else ./data, else the repository's data/ that all tasks share."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def data_folder(data_dir: str | None, holds: str) -> Path:
    """The folder to read ``holds`` (a path inside it) from, or to put it into when none has it yet."""
    if data_dir is not None:
        return Path(data_dir)
    candidates = [Path("data"), REPOSITORY / "data"]
    return next((folder for folder in candidates if (folder / holds).exists()), candidates[-1])
