"""The leak search: connections that a program takes from a pool and does not give back, found in its source.

``search`` is the door (text or paths in, findings out), ``text`` prints. Behind it: ``syntax`` reads trees,
``vocabulary`` knows what acquires and what releases, ``flow`` walks the ways through one function, ``rules``
names what the walk lost. The source is read and never executed.
"""
