"""Does a PyTorch module compute what a Keras model computes, and if not, where does it differ?"""

from parity.arrangements import Arrangement
from parity.inference.infer import infer
from parity.inference.records import Inference
from parity.inference.weight_map import load_weights
from parity.layer_map import LayerMap, LayerPair
from parity.recording import NotARecording, Recording
from parity.records import Comparison, Culprit, Gate, GateStatus, Reading, Result, Status
from parity.verify import verify

__all__ = [
    "Arrangement",
    "Comparison",
    "Culprit",
    "Gate",
    "GateStatus",
    "Inference",
    "LayerMap",
    "LayerPair",
    "NotARecording",
    "Reading",
    "Recording",
    "Result",
    "Status",
    "infer",
    "load_weights",
    "verify",
]
