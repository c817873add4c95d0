"""Does a PyTorch module compute what a Keras model computes, and if not, where does it differ?"""

from parity.layer_map import LayerMap, LayerPair
from parity.records import Comparison, Culprit, Gate, GateStatus, Reading, Result, Status
from parity.verify import verify

__all__ = [
    "Comparison",
    "Culprit",
    "Gate",
    "GateStatus",
    "LayerMap",
    "LayerPair",
    "Reading",
    "Result",
    "Status",
    "verify",
]
