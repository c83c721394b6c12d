"""See command.py."""

from memtok_experiments.ideas.command import main

main()
