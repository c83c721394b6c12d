"""`memtok reproduce beyond`: what composes against what does not, fairly: the same images, steps, choices and seeds.

rows.py and columns.py declare what is compared; trials.py trains, fitted.py solves, work.py goes through all of it,
table.py compares. sets.py makes image folders.
"""
