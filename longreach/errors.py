"""The one exception for mistakes that a user can mend: a file, an option, a value that does not fit.

Its message names the thing, the value it has and the remedy.  The command line prints it without a traceback and exits
with status 2; a program that uses the library can catch it as the ValueError that it is.
"""


class InputError(ValueError):
    """What was given cannot be used; the message says what, why, and what to do instead."""
