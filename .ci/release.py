"""Whether what would be published fits together: python .ci/release.py WHEEL WHEEL_FROM_THE_SDIST.

Both wheels hold the same files; the version has its section in CHANGELOG.md and CITATION.cff; and if the commit is
tagged, the tag is that version. Standard library only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("rpam_lite/py.typed", "rpam_lite/recipes/tiny.yaml", "rpam_lite/recipes/tiny/long/model.safetensors")


def contents(wheel: Path) -> dict[str, int]:
    """Checksum of every file in a wheel."""
    with zipfile.ZipFile(wheel) as opened:
        return {entry.filename: entry.CRC for entry in opened.infolist()}


def mistakes(wheel: Path, again: Path) -> list[str]:
    """What does not fit."""
    found = []
    version = wheel.name.split("-")[1]
    differ = sorted(name for name, _ in contents(wheel).items() ^ contents(again).items())
    if differ:
        found.append(f"the wheel built from the sdist differs from the checkout's in {', '.join(differ)}")
    for needed in NEEDED:
        if needed not in contents(wheel):
            found.append(f"{wheel.name} lacks {needed}")
    if not any(name.endswith("/licenses/LICENSE") for name in contents(wheel)):
        found.append(f"{wheel.name} lacks its licence")
    if not re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M):
        found.append(f"CHANGELOG.md has no section [{version}]")
    if f"\nversion: {version}\n" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8"):
        found.append(f"CITATION.cff does not say version: {version}")
    command = ["git", "tag", "--points-at", "HEAD", "--list", "v*"]
    tags = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False).stdout.split()
    found += [f"the commit is tagged {tag}, the version is {version}" for tag in tags if tag != f"v{version}"]
    return found


if __name__ == "__main__":
    wrong = mistakes(Path(sys.argv[1]), Path(sys.argv[2]))
    print("\n".join(wrong) or "The sdist makes the same wheel; version, change log, citation and tag agree.")
    sys.exit(bool(wrong))
