"""Comparison with the original's numbers: any golden set's arrays against what our code makes."""

from vljax.convert.parity.compare import Report, Row, relative_error
from vljax.convert.parity.golden import GoldenSet, size_from_config
from vljax.convert.parity.run import compare_set

__all__ = ["GoldenSet", "Report", "Row", "compare_set", "relative_error", "size_from_config"]
