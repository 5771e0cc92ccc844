"""News from the workers, for the stages above: they listen, so that nothing below imports them."""

from django.dispatch import Signal

#: Runs of a chunk have failed and have no attempts left. `runner` is the chunk's runner.
chunk_failed = Signal()
