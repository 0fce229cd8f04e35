"""How far an opened file is from the simulation, found out as `export` does."""

from tfquant.export.parity import ParityReport, agreement
from tfquant.export.request import ExportRequest
from tfquant.model import engine_of


def agreement_with(model, session, batches, mode: str = "quantized") -> ParityReport:
    return agreement(ExportRequest(engine_of(model), mode, 17), session, batches)
