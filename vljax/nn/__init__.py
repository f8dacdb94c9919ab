"""Layers shared by every tower.

Shape letters, used in docstrings and einsums everywhere: ``B`` batch, ``T`` frames (or sound
clips), ``P`` patches, ``Q`` queries, ``L`` text length, ``S`` key/value length, ``D`` width,
``H`` heads,
``G`` key/value heads, ``K`` head dim, ``F`` MLP width, ``V`` vocabulary.
"""
