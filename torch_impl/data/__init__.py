"""The data of EpiBERT: TFRecords to HDF5, records to training examples.

One way: ``*.tfr`` -> ``tfrecord`` -> ``Record`` -> ``store`` (HDF5) -> ``Record`` -> ``draws`` -> ``examples`` ->
``torch_impl.data_module``.
"""
