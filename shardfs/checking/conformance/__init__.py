"""Random sequences of operations on a system and its model, compared after each step."""
