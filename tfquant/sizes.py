"""Size of a network in float and with packed parameters, by variable."""

from __future__ import annotations

import dataclasses

from calib import tables


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
        columns = ("variable", "shape", "bits", "float", "packed", "")
        rows = [
            (
                v.path,
                "x".join(map(str, v.shape)) or "scalar",
                str(v.bits),
                f"{v.float_bytes:,}",
                f"{v.packed_bytes:,}",
                v.note,
            )
            for v in self.variables
        ]
        rows.append(("total", "", "", f"{self.float_bytes:,}", f"{self.packed_bytes:,}", ""))
        table = tables.build(None, columns, rows, left=("variable", "shape", ""))
        file = "" if self.file_bytes is None else f", file {self.file_bytes:,}"
        smaller = (
            f" ({self.float_bytes / self.packed_bytes:.2f} times smaller)"
            if self.packed_bytes
            else ""
        )
        return (
            f"{tables.render(table)}\nbytes: float {self.float_bytes:,}, packed"
            f" {self.packed_bytes:,}{smaller}, ranges {self.range_bytes:,}{file}"
        )

    def _repr_html_(self) -> str:
        return tables.as_html(str(self))
