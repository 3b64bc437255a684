"""The project as it would be committed now, copied to another folder."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def module_name(path: Path) -> str:
    """Return the dotted name of the module in this file of the project."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def files(folder: str = ".") -> list[Path]:
    """What git knows or would take, relative to the project's root; in order."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", folder],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    found = {Path(name) for name in listed.stdout.split("\0") if name}
    return sorted(path for path in found if (ROOT / path).is_file())


def copy(target: Path) -> None:
    for path in files():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
