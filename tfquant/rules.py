"""Recipe, Rule, Fuse: immutable description of which edges are quantized and how; JSON and YAML
input and output.

Nothing in here touches a graph. A recipe is an ordered list of rules; for each edge of a graph the
last rule that matches wins.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import yaml

import calib
from calib import patterns
from fileio.atomic import write_text
from fileio.messages import printable
from fileio.reading import parse_json, read_json
from fileio.yaml_text import parse_yaml, read_yaml
from tfquant import validation
from tfquant.choices import EXPONENTIALS
from tfquant.error_messages import one_line, shown
from tfquant.recipes.patterns import PATTERNS
from tfquant.recipes.spec_strings import parse_spec
from tfquant.site import DIRECTIONS, PARAMETER_ROLES, PARTS, ROLES
from tfquant.spec import KEYS, QuantSpec

_LONGEST = 1000  # characters of an error about a file


@dataclasses.dataclass(frozen=True)
class Rule:
    """Match condition for edges and the QuantSpec of those that match.

    Attributes:
      spec: how the edges are quantized, or a short string (`tfquant.recipes.spec_strings`); None
        leaves them in float (to except some from an earlier rule).
      role: one of `ROLES` or several; `*` for all.
      path: pattern of layer paths, see `calib.patterns`.
      port: which edge of the layer (`kernel`, `input`, `q`, `k`, `v`, `probabilities`, ...), as a
        pattern too.
      shape: static shape to match; None in it matches any size, None in its place any shape.
      optional: without it a rule that matches no edge is an error.
      name: shown in tables and errors; made from the rest if empty.
      part: one of `PARTS` or several, where in an encoder the edge lies; `*` for any place. A name
        of `tfquant.recipes.patterns.PATTERNS`, such as `ALL_QK`, stands for its parts.
      direction: `forward` for values, `backward` for gradients.
    """

    spec: QuantSpec | None
    role: str | tuple[str, ...] = "*"
    path: str = "*"
    port: str = "*"
    shape: tuple[int | None, ...] | None = None
    optional: bool = False
    name: str = ""
    part: str | tuple[str, ...] = "*"
    direction: str = "forward"

    def __post_init__(self):
        where = f"rule {shown(self.name or self.path or self.role)}"
        for field in ("path", "port", "name"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(
                    f"{where}: {field} must be a string, got {shown(getattr(self, field))}"
                )
        if not isinstance(self.optional, bool):
            raise ValueError(f"{where}: optional must be true or false, got {shown(self.optional)}")
        if isinstance(self.spec, str):
            object.__setattr__(self, "spec", parse_spec(self.spec))
        if self.spec is not None and not isinstance(self.spec, QuantSpec):
            raise ValueError(f"{where}: spec must be a QuantSpec or None, got {shown(self.spec)}")
        for field, known in (("role", ROLES), ("part", PARTS)):
            names = validation.sequence(
                getattr(self, field), (str,), f"{where}: {field} must be a name or a list of names"
            )
            if field == "part":
                names = tuple(
                    dict.fromkeys(part for name in names for part in PATTERNS.get(name, (name,)))
                )
            for name in names:
                if name != "*" and name not in known:
                    names_of_sets = (*known, *(PATTERNS if field == "part" else ()))
                    raise ValueError(
                        f"{where}: unknown {field} {name!r}; known: {', '.join(names_of_sets)}"
                    )
            object.__setattr__(self, field, names[0] if len(names) == 1 else names)
        if self.direction not in DIRECTIONS:
            raise ValueError(
                f"{where}: direction must be {' or '.join(DIRECTIONS)}, got {shown(self.direction)}"
            )
        if self.shape is not None:
            message = f"{where}: shape must be a list of sizes (null matches any)"
            sizes = validation.sequence(self.shape, (int, type(None)), message, single=False)
            if any(size is not None and size < 0 for size in sizes):
                raise ValueError(f"{message} of at least 0, got {shown(self.shape)}")
            object.__setattr__(self, "shape", sizes)
        patterns.check(self.path, f"{where}, path")
        patterns.check(self.port, f"{where}, port")
        if not self.name:
            object.__setattr__(self, "name", self._made_name())

    def _made_name(self) -> str:
        """Generated name, different for rules that match different edges."""
        parts = ["/".join(self.roles)]
        if self.path != "*":
            parts.append(f"at {self.path}")
        if self.port != "*":
            parts.append(f"port {self.port}")
        if self.shape is not None:
            parts.append(
                "of shape " + "x".join("?" if size is None else str(size) for size in self.shape)
            )
        if "*" not in self.parts:
            parts.append(f"in {'/'.join(self.parts)}")
        if self.direction != "forward":
            parts.append(self.direction)
        return " ".join(parts)

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.part,) if isinstance(self.part, str) else self.part

    @property
    def roles(self) -> tuple[str, ...]:
        return (self.role,) if isinstance(self.role, str) else self.role

    @property
    def key(self) -> tuple:
        """Match condition as a key; of two rules with one key the first never has an effect."""
        parts = tuple(sorted(self.parts))
        return (tuple(sorted(self.roles)), self.path, self.port, self.shape, parts, self.direction)

    def matches(
        self,
        role: str,
        path: str,
        port: str,
        shape: tuple[int | None, ...] | None,
        part: str | None = None,
        direction: str = "forward",
    ) -> bool:
        """Return whether the rule matches an edge.

        Args:
          role, path, port, direction: the address of the edge.
          shape: its static shape, None where not known.
          part: where in an encoder it lies, None where nowhere.
        """
        if direction != self.direction:
            return False
        if "*" not in self.parts and part not in self.parts:
            return False
        if "*" not in self.roles and role not in self.roles:
            return False
        if not (patterns.matches(self.port, port) and patterns.matches(self.path, path)):
            return False
        return self.shape is None or _shape_matches(self.shape, shape)

    def to_dict(self) -> dict[str, Any]:
        data = validation.public_fields(self)
        data["role"] = self.role if isinstance(self.role, str) else list(self.role)
        data["part"] = self.part if isinstance(self.part, str) else list(self.part)
        data["shape"] = None if self.shape is None else list(self.shape)
        data["spec"] = None if self.spec is None else self.spec.to_dict()
        defaults = {
            "path": "*",
            "port": "*",
            "shape": None,
            "optional": False,
            "part": "*",
            "direction": "forward",
        }
        return {k: v for k, v in data.items() if k not in defaults or v != defaults[k]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Rule:
        data = validation.mapping(data, "rule")
        where = f"rule {shown(data.get('name', data))}"
        if "spec" not in data:
            raise ValueError(f"{where} has no 'spec' (write spec: null to leave edges in float)")
        if data["spec"] is not None:
            try:
                text = isinstance(data["spec"], str)
                data["spec"] = (parse_spec if text else QuantSpec.from_dict)(data["spec"])
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        return validation.build(cls, data, "rule")


@dataclasses.dataclass(frozen=True)
class Fuse:
    """Common range of the query, key and value sites of each attention, so that a fused QKV product
    has one scale.

    Attributes:
      role: `weight` (the three kernels), `linear_output` (their products) or `matmul_input` (q, k
        and v as matmul operands).
    """

    role: Literal["weight", "linear_output", "matmul_input"]

    def __post_init__(self):
        if self.role not in ("weight", "linear_output", "matmul_input"):
            raise ValueError(
                f"cannot fuse ranges of role {shown(self.role)}; known: weight, linear_output,"
                " matmul_input"
            )


@dataclasses.dataclass(frozen=True)
class Softmax:
    """Approximations in the softmax of each attention that posit hardware computes by bit
    operations, see `tfquant.rewrites.posit_softmax`.

    Attributes:
      exponential: `exact`; `posit_exp`, which is 0 for arguments below -5; or `posit_exp_shifted`,
        which has no step there.
      posit_reciprocal: whether the sum is inverted as a posit instead of a division.
    """

    exponential: str = "exact"
    posit_reciprocal: bool = False

    def __post_init__(self):
        if self.exponential not in EXPONENTIALS:
            raise ValueError(
                f"unknown exponential {shown(self.exponential)} of softmax; known:"
                f" {', '.join(EXPONENTIALS)}"
            )
        if not isinstance(self.posit_reciprocal, bool):
            raise ValueError(
                "posit_reciprocal of softmax must be true or false, got"
                f" {shown(self.posit_reciprocal)}"
            )

    @property
    def exact(self) -> bool:
        """Whether nothing is approximated."""
        return self == Softmax()

    def __str__(self) -> str:
        """Its options as names of the literature, such as `posit_exp_shifted, posit_reciprocal`."""
        names = [self.exponential] if self.exponential != "exact" else []
        names += ["posit_reciprocal"] if self.posit_reciprocal else []
        return ", ".join(names) or "exact"

    def to_dict(self) -> dict[str, Any]:
        return validation.public_fields(self)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Ordered rules and recipe-wide settings. The last rule that matches an edge decides.

    Attributes:
      rules: see `Rule`; at least one, unless softmax is approximated.
      name: for tables, files and errors.
      share: consumers of one tensor whose specs are equal share one range; otherwise every consumer
        has its own.
      fuse: common ranges over query, key and value.
      disable: regular expressions searched for in site addresses; such sites keep and calibrate a
        range, but do not quantize.
      softmax: approximations in attention; the name of an exponential stands for that one alone.
      gamma_migration: the learned scale of layer norms moves into the linear layers behind them
        before anything is quantized, see `tfquant.rewrites.gamma_migration`.
    """

    rules: tuple[Rule, ...]
    name: str = "custom"
    share: bool = True
    fuse: tuple[Fuse, ...] = ()
    disable: tuple[str, ...] = ()
    softmax: Softmax = Softmax()
    gamma_migration: bool = False

    def __post_init__(self):
        where = f"recipe {shown(self.name)}"
        if not isinstance(self.name, str):
            raise ValueError(f"{where}: name must be a string")
        if not isinstance(self.share, bool):
            raise ValueError(f"{where}: share must be true or false, got {shown(self.share)}")
        if not isinstance(self.gamma_migration, bool):
            raise ValueError(
                f"{where}: gamma_migration must be true or false, got {shown(self.gamma_migration)}"
            )
        object.__setattr__(self, "softmax", _softmax(self.softmax, where))
        listed = {
            "rules": validation.sequence(
                self.rules,
                (Rule,),
                f"{where}: rules must be a list of rules",
                single=self.softmax.exact,  # without, the approximation alone is a recipe
            ),
            "fuse": validation.sequence(
                self.fuse, (Fuse, str), f"{where}: fuse must be a list of roles", single=False
            ),
            "disable": validation.sequence(
                self.disable, (str,), f"{where}: disable must be a list of patterns", single=False
            ),
        }
        listed["fuse"] = tuple(f if isinstance(f, Fuse) else Fuse(f) for f in listed["fuse"])
        for field, values in listed.items():
            object.__setattr__(self, field, values)
        for pattern in self.disable:
            patterns.check(patterns.REGEX + pattern, f"{where}, disable")
        self._check_conflicts()

    def _check_conflicts(self) -> None:
        by_key: dict[tuple, Rule] = {}
        names: set[str] = set()
        for rule in self.rules:
            other = by_key.setdefault(rule.key, rule)
            if other.spec != rule.spec:
                raise ValueError(
                    f"recipe {self.name!r}: rules {other.name!r} and {rule.name!r} match the same"
                    " edges with different specs; remove one, or narrow its role, path, port,"
                    " shape or part"
                )
            if rule.name in names:
                raise ValueError(
                    f"recipe {self.name!r}: two rules are called {rule.name!r}; give each a name of"
                    " its own"
                )
            names.add(rule.name)

    def disables(self, address: str) -> bool:
        """Return whether a pattern of `disable` is found in a site address."""
        return any(patterns.matches(patterns.REGEX + pattern, address) for pattern in self.disable)

    def with_rules(self, *rules: Rule, name: str | None = None) -> Recipe:
        """Append rules to the recipe, which take precedence over the existing ones.

        One that matches the same edges is replaced.
        """
        rules = validation.sequence(
            rules, (Rule,), f"recipe {self.name!r}: rules must be a list of rules", single=False
        )
        replaced = {rule.key for rule in rules}
        kept = tuple(rule for rule in self.rules if rule.key not in replaced)
        return dataclasses.replace(self, rules=kept + rules, name=name or self.name)

    def with_method(
        self, method: str | calib.Method, *, roles: Iterable[str] | None = None, **options: Any
    ) -> Recipe:
        """Return the recipe with another range method.

        Args:
          method: name or `calib.Method`.
          roles: what it is for; by default all activations that are calibrated, not weights, biases
            and embeddings, and not activations without stored ranges.
          **options: of the method, such as `percentile=99.99`.

        Raises:
          ValueError: unknown method, option or role, or no rule quantizes any of `roles`.
        """
        if isinstance(method, str):
            method = calib.Method.parse(method, **options)
        elif not isinstance(method, calib.Method) or options:
            raise ValueError(
                "a range method is a name with options, or a calib.Method without any, got"
                f" {method!r}, {options}"
            )

        def change(spec: QuantSpec) -> QuantSpec:
            if roles is None and spec.source != "stored":
                return spec  # nothing is calibrated there
            return dataclasses.replace(spec, method=method)

        return self._map_specs(roles, change)

    def with_spec(self, *, roles: Iterable[str], **changes: Any) -> Recipe:
        """Return the recipe with changed fields of the QuantSpec of some roles, for example
        `roles=["weight"], format="int4"`.

        `roles=["*"]` changes them all.

        Raises:
          ValueError: unknown field, value or role, or no rule quantizes any of `roles`.
        """
        unknown = sorted(set(changes) - set(KEYS))
        if unknown:
            raise ValueError(
                f"a quantization spec has no field {unknown[0]!r}; known: {', '.join(KEYS)}"
            )
        return self._map_specs(roles, lambda spec: dataclasses.replace(spec, **changes))

    def _map_specs(
        self, roles: Iterable[str] | None, change: Callable[[QuantSpec], QuantSpec]
    ) -> Recipe:
        if roles is None:
            wanted = set(ROLES) - set(PARAMETER_ROLES)
        else:
            wanted = set(validation.sequence(roles, (str,), "roles must be a list of roles"))
            wanted = set(ROLES) if "*" in wanted else wanted
        unknown = wanted - set(ROLES)
        if unknown:
            raise ValueError(f"unknown role {sorted(unknown)[0]!r}; known: {', '.join(ROLES)}")
        rules: dict[tuple, Rule] = {}
        touched_any = False
        for rule in self.rules:
            own = ROLES if "*" in rule.roles else rule.roles
            touched = tuple(role for role in own if role in wanted)
            changed = change(rule.spec) if rule.spec is not None and touched else rule.spec
            touched_any |= rule.spec is not None and bool(touched)
            if len(touched) == len(own):
                new = [dataclasses.replace(rule, spec=changed)]
            elif changed == rule.spec:
                new = [rule]
            else:
                # The rule itself stays, so that it is still an error if nothing at all matches it.
                name = f"{rule.name} ({', '.join(touched)})"
                new = [
                    rule,
                    dataclasses.replace(rule, role=touched, spec=changed, optional=True, name=name),
                ]
            for entry in new:
                rules.pop(
                    entry.key, None
                )  # what an earlier change left there has no effect any more
                rules[entry.key] = entry
        if roles is not None and not touched_any:
            raise ValueError(
                f"recipe {self.name!r} has no rule that quantizes"
                f" {' or '.join(sorted(wanted)) or 'no role'}"
            )
        return dataclasses.replace(self, rules=tuple(rules.values()))

    def to_dict(self) -> dict[str, Any]:
        data = {
            "name": self.name,
            "share": self.share,
            "fuse": [f.role for f in self.fuse],
            "disable": list(self.disable),
        }
        if not self.softmax.exact:
            data["softmax"] = self.softmax.to_dict()
        if self.gamma_migration:
            data["gamma_migration"] = True
        return {**data, "rules": [r.to_dict() for r in self.rules]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        data = validation.mapping(data, "recipe")
        where = f"recipe {shown(data.get('name', ''))}"
        if not isinstance(data.get("rules"), list):
            raise ValueError(f"{where}: 'rules' must be a list of rules")
        try:
            data["rules"] = tuple(Rule.from_dict(r) for r in data["rules"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        return validation.build(cls, data, "recipe")

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        return cls.from_dict(parse_json(text, "recipe", unique_keys=True))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Recipe:
        return cls.from_dict(parse_yaml(text, "recipe"))

    def save(self, path: str | pathlib.Path) -> None:
        """Write a `.json`, `.yaml` or `.yml` file that `load` reads, atomically.

        Raises:
          ValueError: another ending.
          OSError: it cannot be written.
        """
        path = pathlib.Path(path)
        _check_suffix(path)
        if not path.parent.is_dir():
            raise FileNotFoundError(
                f"{printable(path)}: there is no folder {printable(path.parent)}"
            )
        write_text(path, self.to_json() + "\n" if path.suffix == ".json" else self.to_yaml())

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Recipe:
        """Read a `.json`, `.yaml` or `.yml` file.

        Raises:
          ValueError: the file is not such a file or not a recipe; the message names it.
          OSError: it cannot be read.
        """
        path = pathlib.Path(path)
        _check_suffix(path)
        data = read_json(path, unique_keys=True) if path.suffix == ".json" else read_yaml(path)
        try:
            return cls.from_dict(data)
        except (
            ValueError,
            TypeError,
        ) as error:  # TypeError: keys and values of kinds that nothing here expects
            raise ValueError(f"{printable(path)}: {one_line(error, _LONGEST)}") from error


def _softmax(value: Any, where: str) -> Softmax:
    """Convert the value of a recipe's field `softmax`."""
    if isinstance(value, Softmax):
        return value
    try:
        if isinstance(value, str):
            return Softmax(value)
        return validation.build(Softmax, value, "softmax")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_suffix(path: pathlib.Path) -> None:
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{printable(path)}: a recipe file ends in .json, .yaml or .yml")


def _shape_matches(wanted: tuple[int | None, ...], shape: tuple[int | None, ...] | None) -> bool:
    if shape is None or len(shape) != len(wanted):
        return False
    return all(w is None or w == s for w, s in zip(wanted, shape, strict=True))
