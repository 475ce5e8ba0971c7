"""The thin code under the notebooks of *Gauging the State-of-the-art for Foresight Weight Pruning*."""


class UserError(ValueError):
    """A mistake that the user can mend: the message says what was wrong, where, and what to do."""
