"""From a candidate that passed the gate to one that answers everybody, step by step, and the time that it is watched after.

A share of the users, drawn by chance, is answered by the candidate; all others, in the same period, by the adapter that
answered so far. What they vote and meet decides: `sequential.py` says when it is harm and not chance.
"""
