"""YAML to `Spec`: every problem of a file at once, each with its line and what to write instead."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from converters.config_mapping import ConfigMapping, ConfigSide
from converters.dims import Expression, is_dim_name, parse_expression
from converters.errors import Location, Problem, SpecError
from converters.pattern import Kind, parse_kind
from converters.rule_file import read_rename, read_rule
from converters.spec import LANGUAGE_VERSION, Dim, Note, Rule, Spec, digest_of
from converters.spec_check import check_spec
from converters.spec_nodes import Reader
from converters.spec_proof import read_proof
from converters.spec_side import read_drop, read_side
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
        source, target = read_side(self.reader, top, "source"), read_side(self.reader, top, "target")
        drop = read_drop(self.reader, top.get("drop"))
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
