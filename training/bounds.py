"""What a task may hold.  Without torch: settings and the command line read it before anything is computed."""

MAX_SET_SIZE = 10_000
"""Class names of one set."""
MAX_LABEL_CHARACTERS = 300
"""Of one class name or template."""
MAX_TEMPLATES = 100
