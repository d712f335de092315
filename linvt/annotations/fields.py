"""Checked access to the fields of a JSON row: what is missing or of the wrong type is said, never guessed."""

from typing import Any


def take_text(row: dict[str, Any], name: str) -> str:
    """The string under `name`; ValueError if it is missing or something else."""
    if name not in row:
        raise ValueError(f"no field {name!r}; this row has {sorted(row)}")
    if not isinstance(row[name], str):
        raise ValueError(f"{name!r} must be a string, got {row[name]!r}")
    return row[name]


def take_text_or_none(row: dict[str, Any], name: str) -> str | None:
    """The string under `name`, None where the field is missing or null."""
    return None if row.get(name) is None else take_text(row, name)


def take_list(row: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The list of objects under `name`, empty where the field is missing or null."""
    items = row.get(name)
    if items is None:
        return []
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise ValueError(f"{name!r} must be a list of objects, got {items!r}")
    return items
