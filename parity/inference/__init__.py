"""Which layer of a port answers to which layer of a Keras model, and which tensor to which variable, found out.

Order of execution, type and shapes propose; values confirm. The port gets the reference's weights for a moment, as the
proposal has them, and every layer is fed with what the reference's layer was fed with: a pair is confirmed when the two
return the same. What stays unconfirmed is in the map all the same, where ``verify`` will find what is wrong with it.
What could be paired in several ways is named and not paired, so that ``verify`` fails on it by name: a line in a table
of the user's own decides.

``infer`` is the entry. It reads the reference by ``reference_side``; each attempt is a ``search``, which pairs
``units`` and ends in ``records``. ``weight_map`` moves the weights by what was found.
"""
