"""YAML to `Spec`: every problem of a file at once, each with its line and what to write instead."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from converters.config_mapping import ConfigMapping, ConfigSide
from converters.dims import Expression, is_dim_name, parse_expression
from converters.errors import Location, Problem, SpecError
from converters.parts import Part, parse_config_entry, parse_part, same_file
from converters.pattern import Kind, parse_kind
from converters.rule_file import read_rename, read_rule
from converters.spec import CONFIG_FILE, LANGUAGE_VERSION, Dim, Drop, Note, Rule, Side, Spec, digest_of
from converters.spec_check import check_spec
from converters.spec_nodes import Reader
from converters.spec_proof import read_proof
from converters.yaml_nodes import MappingNode, Node, ScalarNode, load_yaml, read_yaml_bytes, to_plain

TOP = (
    "weightmap",
    "name",
    "description",
    "models",
    "proof",
    "source",
    "target",
    "strip_prefix",
    "dims",
    "placeholders",
    "rename",
    "rules",
    "drop",
    "config",
    "notes",
)


SIDE = ("layout", "config", "config_file", "file", "files", "strip_prefix", "drop")


def load_spec_file(path: Path) -> Spec:
    """Read a spec from a YAML file.

    Raises:
        SpecError: with all the problems of the file, each with file, line and column.
    """
    return parse_spec(read_yaml_bytes(path), str(path))


def parse_spec(text: bytes | str, path: str = "<spec>") -> Spec:
    """Read a spec from YAML text; `path` is what messages call it.

    Raises:
        SpecError: with all the problems of the text, each with file, line and column.
    """
    data = text.encode() if isinstance(text, str) else text
    reader = Reader()
    spec = _Parser(reader).spec(load_yaml(data, path), path, digest_of(data))
    if spec is not None and not reader.problems:
        reader.problems.extend(check_spec(spec))
    if reader.problems or spec is None:
        raise SpecError(sorted(reader.problems, key=_position))
    return spec


def _position(problem: Problem) -> tuple[int, int]:
    return (problem.where.line, problem.where.column) if isinstance(problem.where, Location) else (0, 0)


class _Parser:
    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def spec(self, root: Node, path: str, digest: str) -> Spec | None:
        top = self.reader.mapping(root, "a spec")
        if top is None:
            return None
        self.reader.known_keys(top, TOP, "a spec")
        self._version(top)
        source, target = self._side(top, "source"), self._side(top, "target")
        drop = self._drop(top.get("drop"))
        strip = self.reader.texts(top.get("strip_prefix"), "strip_prefix")
        source = replace(source, strip_prefix=source.strip_prefix + strip, drop=source.drop + drop)
        dims = self._dims(top.get("dims"))
        names = frozenset(dim.name for dim in dims)
        rules: list[Rule] = []
        for key, value in self.reader.entries(top.get("rename"), "rename"):
            renamed = self.reader.attempt(read_rename, self.reader, key, value)
            if renamed is not None:
                rules.append(renamed)
        for index, node in enumerate(self.reader.items(top.get("rules"), "rules")):
            rule = read_rule(self.reader, node, f"rules[{index}]")
            if rule is not None:
                rules.append(rule)
        if not rules and not self.reader.problems:
            self.reader.problem("a spec without rules maps nothing", root, "add 'rename:' or 'rules:'")
        name_node = top.get("name")
        return Spec(
            name=self.reader.text(name_node, "name") or Path(path).stem,
            source=source,
            target=target,
            rules=tuple(rules),
            dims=dims,
            placeholders=self._placeholders(top.get("placeholders"), names),
            config=self._config(top.get("config")),
            notes=self._notes(top.get("notes")),
            description=self.reader.text(top.get("description"), "description") or "",
            models=self.reader.texts(top.get("models"), "models"),
            proof=read_proof(self.reader, top.get("proof")),
            path=path,
            digest=digest,
        )

    def _version(self, top: MappingNode) -> None:
        node = top.get("weightmap")
        if node is None:
            self.reader.problem(
                "'weightmap' is missing: the version of the language", top, f"add 'weightmap: {LANGUAGE_VERSION}'"
            )
        elif not isinstance(node, ScalarNode) or node.value != LANGUAGE_VERSION or isinstance(node.value, bool):
            self.reader.problem(f"this weightmap reads version {LANGUAGE_VERSION} of the language", node)

    def _side(self, top: MappingNode, name: str) -> Side:
        node = top.get(name)
        if node is None:
            self.reader.problem(f"'{name}' is missing", top, f"add '{name}: {{layout: NAME}}'")
            return Side("")
        mapping = self.reader.mapping(node, name)
        if mapping is None:
            return Side("")
        self.reader.known_keys(mapping, SIDE, name)
        layout = self.reader.text(mapping.get("layout"), f"{name}.layout")
        if layout is None:
            self.reader.problem(f"'{name}.layout' is missing", mapping, "name the layout, such as hf/phi")
        config = mapping.get("config")
        checked = self.reader.mapping(config, f"{name}.config") if config is not None else None
        plain = to_plain(checked) if checked is not None else {}
        return Side(
            layout or "",
            plain if isinstance(plain, dict) else {},
            self.reader.texts(mapping.get("strip_prefix"), f"{name}.strip_prefix"),
            self._drop(mapping.get("drop")),
            self._parts(mapping.get("files"), f"{name}.files"),
            self._config_file(mapping.get("config_file"), f"{name}.config_file"),
            self._file(mapping.get("file"), f"{name}.file"),
            self._configs(mapping.get("files"), f"{name}.files"),
        )

    def _file(self, node: Node | None, what: str) -> str:
        name = self.reader.text(node, what)
        part = self.reader.attempt(parse_part, "file", name, node.location) if node is not None and name else None
        return part.file_text if part is not None else ""

    def _configs(self, node: Node | None, what: str) -> tuple[tuple[str, str], ...]:
        """The files that hold no weights."""
        found = (
            self.reader.attempt(parse_config_entry, str(key.value), value.text, value.location)
            for key, value in self.reader.entries(node, what)
            if isinstance(value, ScalarNode) and value.text.endswith(".json")
        )
        return tuple(entry for entry in found if entry is not None)

    def _parts(self, node: Node | None, what: str) -> tuple[Part, ...]:
        parts = []
        for key, value in self.reader.entries(node, what):
            if isinstance(value, ScalarNode) and value.text.endswith(".json"):
                continue
            file = self.reader.text(value, f"{what}.{key.text}")
            part = self.reader.attempt(parse_part, str(key.value), file, value.location) if file else None
            if part is not None:
                parts.append(part)
        if node is not None and sum(part.numbered for part in parts) > 1:
            self.reader.problem(f"{what}: only one of the files can have a placeholder", node)
        if node is not None and (same := same_file(parts)) is not None:
            both = " and ".join(f"{part.label_text}: {part.file_text}" for part in same)
            hint = "a file is found whatever its suffix, so give each a name of its own"
            self.reader.problem(f"{what}: {both} could be one file", node, hint)
        return tuple(parts)

    def _config_file(self, node: Node | None, what: str) -> str:
        if isinstance(node, ScalarNode) and node.value is None:
            return ""
        name = self.reader.text(node, what)
        # It is read from the one directory and written into the other, so it must not lead out of them.
        plain = name is not None and name.isprintable() and not name.startswith(".") and not set(name) & {"/", "\\"}
        if node is not None and name is not None and not (plain and name.endswith((".json", ".yaml", ".yml"))):
            self.reader.problem(f"{what} must be the name of a file that ends in .json or .yaml", node)
        return name or CONFIG_FILE

    def _drop(self, node: Node | None) -> tuple[Drop, ...]:
        drops = []
        for key, value in self.reader.entries(node, "drop"):
            reason = self.reader.text(value, f"the reason to drop {key.text}")
            if not reason:
                self.reader.problem(
                    f"dropping {key.text!r} needs a reason", key, f'write {key.text!r}: "why nobody will miss it"'
                )
            else:
                drops.append(Drop(str(key.value), reason, key.location))
        return tuple(drops)

    def _expression(self, node: Node | None, what: str) -> Expression | None:
        if isinstance(node, ScalarNode) and isinstance(node.value, (str, int, float)):
            return self.reader.attempt(parse_expression, node.text, node.location)
        if node is not None:
            self.reader.problem(f"{what} must be a number or an expression", node)
        return None

    def _dims(self, node: Node | None) -> tuple[Dim, ...]:
        dims = []
        for key, value in self.reader.entries(node, "dims"):
            name = str(key.value)
            if not is_dim_name(name):
                self.reader.problem(f"{name!r} is no name for a dim", key, "use a name such as H or head_dim")
            if isinstance(value, MappingNode):
                dims.append(self._dim_from_keys(value, name))
                continue
            told_by_tensors = isinstance(value, ScalarNode) and value.value is None
            expression = parse_expression("null") if told_by_tensors else self._expression(value, f"dims.{name}")
            if expression is not None:
                dims.append(Dim(name, expression, value.location))
        return tuple(dims)

    def _dim_from_keys(self, mapping: MappingNode, name: str) -> Dim:
        """A dim that is written `{from: keys, default: 1}`."""
        self.reader.known_keys(mapping, ("from", "default"), f"dims.{name}")
        if self.reader.text(mapping.get("from"), f"dims.{name}.from") != "keys":
            self.reader.problem(f"dims.{name} can be a number, an expression, or {{from: keys, default: 1}}", mapping)
        default = mapping.get("default")
        expression = self._expression(default, f"dims.{name}.default") if default is not None else None
        return Dim(name, expression or parse_expression("null"), mapping.location, from_keys=True)

    def _placeholders(self, node: Node | None, dims: frozenset[str]) -> tuple[tuple[str, Kind], ...]:
        kinds = []
        for key, value in self.reader.entries(node, "placeholders"):
            name = str(key.value)
            if name in dims:
                self.reader.problem(f"{name!r} is a dim already", key, "give the placeholder another name")
            if not isinstance(value, ScalarNode):
                self.reader.problem(f"placeholders.{name} must be a kind such as 0..L or weight|bias", value)
                continue
            kind = self.reader.attempt(parse_kind, value.text, value.location)
            if kind is not None:
                kinds.append((name, kind))
        return tuple(kinds)

    def _config(self, node: Node | None) -> ConfigMapping | None:
        if node is None:
            return None
        mapping = self.reader.mapping(node, "config")
        if mapping is None:
            return None
        self.reader.known_keys(mapping, ("rename", "source", "target"), "config")
        rename = []
        for key, value in self.reader.entries(mapping.get("rename"), "config.rename"):
            new = self.reader.text(value, f"config.rename.{key.text}")
            if new is not None:
                rename.append((str(key.value), new))
        return ConfigMapping(
            tuple(rename),
            self._config_side(mapping.get("source"), "source"),
            self._config_side(mapping.get("target"), "target"),
        )

    def _config_side(self, node: Node | None, name: str) -> ConfigSide:
        if node is None:
            return ConfigSide()
        mapping = self.reader.mapping(node, f"config.{name}")
        if mapping is None:
            return ConfigSide()
        self.reader.known_keys(mapping, ("set", "derive", "default", "delete", "carry_under"), f"config.{name}")
        derive = self._expressions(mapping.get("derive"), f"config.{name}.derive")
        default = self._expressions(mapping.get("default"), f"config.{name}.default")
        delete = {}
        for key, value in self.reader.entries(mapping.get("delete"), f"config.{name}.delete"):
            reason = self.reader.text(value, f"the reason to delete {key.text}")
            if not reason:
                self.reader.problem(f"deleting {key.text!r} from the config needs a reason", key)
            else:
                delete[str(key.value)] = reason
        values = {
            str(key.value): to_plain(value)
            for key, value in self.reader.entries(mapping.get("set"), f"config.{name}.set")
        }
        carry_under = self.reader.text(mapping.get("carry_under"), f"config.{name}.carry_under")
        return ConfigSide(values, derive, default, delete, carry_under or "")

    def _expressions(self, node: Node | None, what: str) -> dict[str, Expression]:
        found = {}
        for key, value in self.reader.entries(node, what):
            expression = self._expression(value, f"{what}.{key.text}")
            if expression is not None:
                found[str(key.value)] = expression
        return found

    def _notes(self, node: Node | None) -> tuple[Note, ...]:
        notes = []
        for item in self.reader.items(node, "notes"):
            mapping = self.reader.mapping(item, "a note")
            if mapping is None:
                continue
            self.reader.known_keys(mapping, ("say", "when"), "a note")
            say = self.reader.text(mapping.get("say"), "say")
            if not say:
                self.reader.problem("a note needs 'say'", item)
                continue
            when = mapping.get("when")
            notes.append(Note(say, self._expression(when, "when") if when is not None else None, item.location))
        return tuple(notes)
