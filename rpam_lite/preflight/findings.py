"""What preflight says: one finding each, with a stable code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from rpam_lite.errors import RpamError

Level = Literal["ERROR", "WARNING", "INFO"]
LEVELS: tuple[Level, ...] = ("INFO", "WARNING", "ERROR")
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One thing found.

    Attributes:
        level: ERROR stops the run; WARNING and INFO don't.
        code: Stable name of the kind of finding.
        message: What was found, and where.
        effect: What the merge will do about it.
        key: Recipe key that changes that; empty where none does.
    """

    level: Level
    code: str
    message: str
    effect: str = ""
    key: str = ""

    def __str__(self) -> str:
        key = f" (recipe key: {self.key})" if self.key else ""
        effect = f" The merge: {self.effect}.{key}" if self.effect else key
        return f"{self.level} [{self.code}] {self.message}{effect}"

    def without(self, text: str) -> Finding:
        """The same with `text` cut out of what it says."""
        return replace(self, message=self.message.replace(text, ""), effect=self.effect.replace(text, ""))


def attempt(findings: list[Finding], code: str, action: Callable[[], T]) -> T | None:
    """The action's result; None, with its error kept as a finding, if it fails."""
    try:
        return action()
    except RpamError as error:
        findings.append(Finding("ERROR", code, str(error)))
    except OSError as error:
        findings.append(Finding("ERROR", code, f"{error.filename}: {error.strerror}; check path and permissions."))
    return None


def worst(findings: Sequence[Finding]) -> Level:
    """The gravest level among them; INFO of none."""
    return max((f.level for f in findings), key=LEVELS.index, default="INFO")
