"""Settings from files: ``FHV_X_FILE=/run/secrets/x`` says where the value of ``FHV_X`` is.

What is in the environment shows up in a container's description, in crash reports and in child
processes. A file of a container's secret does not. Works for every setting, secret or not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

PREFIX = "FHV_"
SUFFIX = "_FILE"
MAX_BYTES = 64 * 2**10


class SettingFileError(ValueError):
    """The file of a setting cannot be used. ``setting`` is the variable; no value is quoted."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem


def from_file(name: str, environment: Mapping[str, str]) -> str | None:
    """The value of the setting ``name`` (``token_pepper``) if its ``_FILE`` variable is set.

    White space around it is dropped: editors end files with a new line. Raises
    ``SettingFileError`` if the file is missing, empty, larger than 64 KiB or not text, and if the
    value is given both ways, for nobody could say which one counts.
    """
    plain = PREFIX + name.upper()
    variable = plain + SUFFIX
    path = environment.get(variable, "")
    if not path:
        return None
    if environment.get(plain):
        raise SettingFileError(variable, f"{plain} is set as well; set one of the two")
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SettingFileError(variable, f"the file holds more than {MAX_BYTES} bytes")
        value = raw.decode().strip()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise SettingFileError(variable, f"cannot read {path}: {reason}") from None
    except UnicodeDecodeError:
        raise SettingFileError(variable, f"{path} is not UTF-8 text") from None
    if not value:
        raise SettingFileError(variable, f"{path} is empty")
    return value


def from_files(names: Iterable[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The values of all settings that are given by files, by name."""
    found = {name: from_file(name, environment) for name in names}
    return {name: value for name, value in found.items() if value is not None}


class FileSettings(BaseSettings):
    """Settings from arguments, files and the environment, in this order."""

    @classmethod
    def by_file(cls) -> list[str]:
        """Which fields a file may give."""
        return list(cls.model_fields)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """``from_files`` refuses a value in a file and in the environment."""
        names = cls.by_file()
        # pydantic-settings asks for a class of its own, but calls sources without arguments.
        files: PydanticBaseSettingsSource = lambda: from_files(names, os.environ)  # type: ignore[assignment]  # noqa: E731
        return init_settings, files, env_settings
