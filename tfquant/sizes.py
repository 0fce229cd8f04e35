"""Size of a network in float and with packed parameters, by variable."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class VariableSize:
    """Size of one variable in bytes.

    Attributes:
      path: its name in the file.
      shape: see there.
      bits: of one value as it is stored.
      float_bytes: without quantization.
      packed_bytes: as it is stored, scales and zero points included.
      note: why it stays in float though a site quantizes what is made of it; empty otherwise.
    """

    path: str
    shape: tuple[int, ...]
    bits: int
    float_bytes: int
    packed_bytes: int
    note: str = ""


@dataclasses.dataclass(frozen=True)
class SizeReport:
    """Sizes of all variables of a network; `print` it.

    Attributes:
      variables: in the order of the model.
      range_bytes: of the ranges of all sites.
      file_bytes: of the file, which holds names, shapes and the recipe as well; None where there is
        none.
    """

    variables: tuple[VariableSize, ...]
    range_bytes: int
    file_bytes: int | None = None

    @property
    def float_bytes(self) -> int:
        """Total size without quantization, in bytes."""
        return sum(variable.float_bytes for variable in self.variables)

    @property
    def packed_bytes(self) -> int:
        """Total size as stored, without the ranges, in bytes."""
        return sum(variable.packed_bytes for variable in self.variables)

    def __str__(self) -> str:
        rows = [("variable", "shape", "bits", "float", "packed", "")]
        for v in self.variables:
            shape = "x".join(map(str, v.shape)) or "scalar"
            rows.append(
                (v.path, shape, str(v.bits), f"{v.float_bytes:,}", f"{v.packed_bytes:,}", v.note)
            )
        rows.append(("total", "", "", f"{self.float_bytes:,}", f"{self.packed_bytes:,}", ""))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(
                f"{cell:{'<' if column in (0, 1, 5) else '>'}{widths[column]}}"
                for column, cell in enumerate(row)
            ).rstrip()
            for row in rows
        ]
        file = "" if self.file_bytes is None else f", file {self.file_bytes:,}"
        smaller = (
            f" ({self.float_bytes / self.packed_bytes:.2f} times smaller)"
            if self.packed_bytes
            else ""
        )
        lines.append(
            f"bytes: float {self.float_bytes:,}, packed {self.packed_bytes:,}{smaller}, ranges"
            f" {self.range_bytes:,}{file}"
        )
        return "\n".join(lines)
