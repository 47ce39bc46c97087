"""The one error of this folder."""


class ModelUnavailable(Exception):
    """No model folder ready for serving can be made; the message is one for a person.

    It says what was asked for, why it cannot be had, and what to do.
    """
