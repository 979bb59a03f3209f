"""Where the packaged configuration lies: ``conf/`` and ``search_spaces/``.

Both live at the top level of the repository and travel inside the wheel. One function finds them
in either place, so a wheel, an editable install and a plain checkout behave the same.
"""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import ConfigError


def resource_folder(name: str) -> Path:
    """The folder ``conf`` or ``search_spaces``.

    Raises:
        ConfigError: Neither the package nor a repository around it holds it.
    """
    package = Path(__file__).resolve().parent
    for folder in (package / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(f"evomerge was installed without its {name}/ folder; install it again.")
