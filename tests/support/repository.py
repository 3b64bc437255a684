"""The files of this project as git would commit them now."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_name(path: Path) -> str:
    """Return the dotted name of the module in this file of the project."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(folder: str = ".") -> list[Path]:
    """List the files that git tracks or would add, sorted, relative to the project's root."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    paths = {Path(name) for name in listing.stdout.split("\0") if name}
    return sorted(path for path in paths if (ROOT / path).is_file())


def copy(target: Path) -> None:
    """Copy these files to another folder."""
    for path in files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
