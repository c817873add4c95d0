"""Every fault of EpiBERT by name."""

from parity.attack.fault import catalogue
from parity.pairs.epibert_faults import constants, data, finetuning, mapping, model, training

CATALOGUE = catalogue(model.FAULTS, constants.FAULTS, mapping.FAULTS, training.FAULTS, finetuning.FAULTS, data.FAULTS)
