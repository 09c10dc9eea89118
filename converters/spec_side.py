"""The `source:` and the `target:` of a spec, as they stand in its file: layout, config, files, and what is dropped."""

from __future__ import annotations

from converters.parts import Part, parse_config_entry, parse_part, same_file
from converters.spec import CONFIG_FILE, Drop, Side
from converters.spec_nodes import Reader
from converters.yaml_nodes import MappingNode, Node, ScalarNode, to_plain

SIDE = ("layout", "config", "config_file", "file", "files", "strip_prefix", "drop")


def read_side(reader: Reader, top: MappingNode, name: str) -> Side:
    """Read the `source:` or the `target:` of a spec."""
    node = top.get(name)
    if node is None:
        reader.problem(f"'{name}' is missing", top, f"add '{name}: {{layout: NAME}}'")
        return Side("")
    mapping = reader.mapping(node, name)
    if mapping is None:
        return Side("")
    reader.known_keys(mapping, SIDE, name)
    layout = reader.text(mapping.get("layout"), f"{name}.layout")
    if layout is None:
        reader.problem(f"'{name}.layout' is missing", mapping, "name the layout, such as hf/phi")
    config = mapping.get("config")
    checked = reader.mapping(config, f"{name}.config") if config is not None else None
    plain = to_plain(checked) if checked is not None else {}
    return Side(
        layout or "",
        plain if isinstance(plain, dict) else {},
        reader.texts(mapping.get("strip_prefix"), f"{name}.strip_prefix"),
        read_drop(reader, mapping.get("drop")),
        _parts(reader, mapping.get("files"), f"{name}.files"),
        _config_file(reader, mapping.get("config_file"), f"{name}.config_file"),
        _file(reader, mapping.get("file"), f"{name}.file"),
        _configs(reader, mapping.get("files"), f"{name}.files"),
    )


def _file(reader: Reader, node: Node | None, what: str) -> str:
    name = reader.text(node, what)
    part = reader.attempt(parse_part, "file", name, node.location) if node is not None and name else None
    return part.file_text if part is not None else ""


def _configs(reader: Reader, node: Node | None, what: str) -> tuple[tuple[str, str], ...]:
    """The files that hold no weights."""
    found = (
        reader.attempt(parse_config_entry, str(key.value), value.text, value.location)
        for key, value in reader.entries(node, what)
        if isinstance(value, ScalarNode) and value.text.endswith(".json")
    )
    return tuple(entry for entry in found if entry is not None)


def _parts(reader: Reader, node: Node | None, what: str) -> tuple[Part, ...]:
    parts = []
    for key, value in reader.entries(node, what):
        if isinstance(value, ScalarNode) and value.text.endswith(".json"):
            continue
        file = reader.text(value, f"{what}.{key.text}")
        part = reader.attempt(parse_part, str(key.value), file, value.location) if file else None
        if part is not None:
            parts.append(part)
    if node is not None and sum(part.numbered for part in parts) > 1:
        reader.problem(f"{what}: only one of the files can have a placeholder", node)
    if node is not None and (same := same_file(parts)) is not None:
        both = " and ".join(f"{part.label_text}: {part.file_text}" for part in same)
        hint = "a file is found whatever its suffix, so give each a name of its own"
        reader.problem(f"{what}: {both} could be one file", node, hint)
    return tuple(parts)


def _config_file(reader: Reader, node: Node | None, what: str) -> str:
    if isinstance(node, ScalarNode) and node.value is None:
        return ""
    name = reader.text(node, what)
    # It is read from the one directory and written into the other, so it must not lead out of them.
    plain = name is not None and name.isprintable() and not name.startswith(".") and not set(name) & {"/", "\\"}
    if node is not None and name is not None and not (plain and name.endswith((".json", ".yaml", ".yml"))):
        reader.problem(f"{what} must be the name of a file that ends in .json or .yaml", node)
    return name or CONFIG_FILE


def read_drop(reader: Reader, node: Node | None) -> tuple[Drop, ...]:
    """Read which keys are dropped, and why."""
    drops = []
    for key, value in reader.entries(node, "drop"):
        reason = reader.text(value, f"the reason to drop {key.text}")
        if not reason:
            reader.problem(
                f"dropping {key.text!r} needs a reason", key, f'write {key.text!r}: "why nobody will miss it"'
            )
        else:
            drops.append(Drop(str(key.value), reason, key.location))
    return tuple(drops)
