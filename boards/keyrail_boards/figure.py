# SPDX-License-Identifier: CERN-OHL-W-2.0
"""What the figures of routed designs share: their JSON document, tables, and files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .place_and_route import tool_versions

__all__ = ["commit", "document", "rows", "write"]


def commit() -> str:
    """The sources' commit; empty outside of a repository."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip()


def document(command: str, results: list[dict[str, Any]], *modules: str) -> dict[str, Any]:
    """The JSON document of results: with the command, the tools' versions and the commit.

    Parameters
    ----------
    command
        Whoever runs it again gets the results again.
    results
        One entry a configuration.
    modules
        Tools that it took, as of `tool_versions`; all if none are named.
    """
    tools = tool_versions(*modules)
    return {"command": command, "tools": tools, "commit": commit(), "results": results}


def _shown(cell: object) -> str:
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return f"{cell:,}" if isinstance(cell, int | float) else str(cell)


def rows(columns: dict[str, str], results: Iterable[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table: headings, and the key of each in the results."""
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    for result in results:
        cells = " | ".join(_shown(result.get(key, "")) for key in columns.values())
        lines.append(f"| {cells} |")
    return lines


def write(file: Path, described: dict[str, Any], page: str | None = None) -> None:
    """Write a document as JSON, and its page beside it; each file is whole or as it was."""
    texts = {".json": json.dumps(described, indent=2) + "\n"}
    if page is not None:
        texts[".md"] = page
    for suffix, text in texts.items():
        new = file.with_suffix(".new")
        new.write_text(text)
        new.replace(file.with_suffix(suffix))
