"""Record of the layer norms whose learned scale was migrated in a trace."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Migration:
    """Result of `tfquant.rewrites.gamma_migration` on one trace.

    Attributes:
      norms: paths of the layer norms whose scale was migrated, in graph order.
      skipped: (path, reason) of the layer norms that keep their scale.
      rescaling: names of the operations that multiply the output of a norm for readers that are
        no linear layers.
    """

    norms: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    rescaling: frozenset[str]
