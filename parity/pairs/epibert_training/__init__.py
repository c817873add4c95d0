"""EpiBERT in training: which parts of the port's training answer to which of the reference's, and on what they meet.

``parts`` are what trains the port, ``recipes`` say how both sides are trained, ``tensors`` which tensor is which. What
comes out is judged in four modules:

=========== ================================= ===================================================
against     losses, metrics, schedule alone   gradients, optimizer steps, state, trajectory
=========== ================================= ===================================================
living      ``live_functions``                ``live_training``, on the two models of ``live_pair``
recordings  ``recorded_functions``            ``recorded_training``
=========== ================================= ===================================================

``function_rows`` is what the two of the first column share, ``hdf5`` what the two of the last row share. TensorFlow is
needed for the living reference only, and imported in functions.
"""
