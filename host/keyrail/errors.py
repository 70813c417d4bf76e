# SPDX-License-Identifier: Apache-2.0
"""Errors that a user can act on: one line each, which the command line prints with exit code 2."""

from __future__ import annotations

from pathlib import Path


class KeyrailError(Exception):
    """What is wrong, where, and what would be right, in one line."""


class RecordingError(KeyrailError):
    """A recording cannot be read."""

    def __init__(self, path: str | Path, where: str, wrong: str, right: str = "") -> None:
        super().__init__(f"{path}: {where}: {wrong}" + (f"; {right}" if right else ""))


class SettingError(KeyrailError):
    """A setting is out of its range."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key} = {value}: allowed is {allowed}")


class MissingTool(KeyrailError):
    """A system tool is missing."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} is missing: install the system package {package}")


class MissingExtra(KeyrailError):
    """A part of Keyrail is used without its extra."""

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is missing: pip install 'keyrail[{extra}]' brings it")


class ContractMismatch(KeyrailError):
    """A board speaks another contract than this library."""
