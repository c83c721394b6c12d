"""What else a task could read of a frozen trunk, tried on kept tokens: `python -m memtok_experiments.ideas`.

tokens.py reads the tokens of all levels once, forms.py has the ideas as modules over them, command.py trains and tests.
"""
