"""What lies in folders by name, each folder listed once; and names that were typed in another Unicode form."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.texts import one_form

REMEDY = "restore the folder or its permissions"


@dataclass
class FolderNames:
    """Names in folders; each folder is listed once."""

    _listed: dict[str, frozenset[str]] = field(default_factory=dict, repr=False)
    _absent: set[str] = field(default_factory=set, repr=False)
    _forms: dict[str, dict[str, str]] = field(default_factory=dict, repr=False)

    def of(self, folder: str | Path) -> frozenset[str]:
        """Names of everything in a folder. Raises UserError when it cannot be listed."""
        key = str(folder) or "."
        if key not in self._listed:
            try:
                self._listed[key] = frozenset(os.listdir(key))
            except OSError as error:
                raise UserError(f"cannot list {key}: {error.strerror}; {REMEDY}") from error
        return self._listed[key]

    def hold(self, path: str) -> bool:
        """Return whether there is a file or folder of this path. Raises UserError for a folder that cannot be
        listed.
        """
        folder, name = os.path.split(path)
        folder = folder or "."
        if folder not in self._listed and folder not in self._absent and not _is_folder(folder):
            self._absent.add(folder)
        return folder not in self._absent and name in self.of(folder)

    def find(self, path: str) -> str | None:
        """Return the path of a file or folder as it is called there: what was typed may be another Unicode form of its
        names. None = there is none. Raises UserError for a folder that cannot be listed.
        """
        if self.hold(path):
            return path
        if path.isascii():
            return None
        above, name = os.path.split(path)
        folder = above if not above or os.path.isdir(above) else self.find(above) if name else None
        if folder is None or not name:
            return None
        if folder not in self._forms:
            # Of two names that differ in their form alone, the same one every time.
            self._forms[folder] = {one_form(entry): entry for entry in sorted(self.of(folder), reverse=True)}
        found = self._forms[folder].get(one_form(name))
        return None if found is None else os.path.join(folder, found)


def _is_folder(path: str) -> bool:
    """As os.path.isdir, which says of a folder below one that may not be entered that it is not there.

    Raises UserError for such a folder.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except PermissionError as error:
        raise UserError(f"cannot list {path}: {error.strerror}; {REMEDY}") from error
    except (OSError, ValueError):
        return False
