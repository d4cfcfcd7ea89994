"""Stand-ins for engines that need CUDA: the real signatures, names and shapes of results over a scheduler and no model.

Each package says which file of which version it follows. An argument that the real one does not know is refused, as is
one that the stand-in does not know, so that a wrong call of an adapter fails here. What a call costs, the clock's and
the scheduler's finer behaviour and everything that a GPU does cannot be seen with them.
"""
