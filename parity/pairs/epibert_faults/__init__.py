"""Faults of EpiBERT as data, by what they break, and the bench on which the ladder judges them.

``model``, ``constants``, ``mapping``, ``training``, ``finetuning`` and ``data`` hold the faults, ``catalogue`` all of
them; ``trained`` holds those that whole training runs are made with. ``bench`` judges, ``effects`` measures, ``clean``
draws ports without a fault, ``target`` puts these together for ``parity.attack``.
"""
