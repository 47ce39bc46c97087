"""What to say, and what to do, about each way in which huggingface_hub fails."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from workers.errors import ModelUnavailable

UNWRITABLE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT}
)


@contextmanager
def explained(model_id: str, revision: str | None) -> Iterator[None]:
    """Raise `ModelUnavailable` in place of what huggingface_hub raises in the body."""
    from huggingface_hub import constants, errors

    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except ModelUnavailable:
        raise
    except errors.HFValidationError as error:
        raise ModelUnavailable(
            f"{model_id!r} is neither an existing folder nor a Hub id (owner/name)"
        ) from error
    except errors.GatedRepoError as error:
        raise ModelUnavailable(
            f"model {model_id} is gated: accept its licence at {constants.ENDPOINT}/{model_id} "
            "and set HF_TOKEN to a token of the account that did"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id} has no revision {revision!r}: give a branch, a tag or a commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id} does not exist on {constants.ENDPOINT}, or is private: check the "
            "spelling, or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelUnavailable(_refused(model_id, error)) from error
    except errors.IncompleteSnapshotError as error:
        raise ModelUnavailable(
            f"only a part of model {model_id}{at} is in the cache, and the rest cannot be "
            f"fetched: {_cause(error)}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id}{at} is not in the cache and cannot be fetched: {_cause(error)}"
        ) from error
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise ModelUnavailable(_broken_off(model_id, error)) from error
        raise ModelUnavailable(
            f"model {model_id} cannot be kept: {error}. Set HF_HOME, or --huggingface-hub-cache, "
            "to a folder that can be written and has space"
        ) from error
    except Exception as error:
        # The transport below huggingface_hub has changed from version to version, and with it
        # the errors of a connection that breaks in the middle of a file.
        raise ModelUnavailable(_broken_off(model_id, error)) from error


def _broken_off(model_id: str, error: Exception) -> str:
    return (
        f"downloading model {model_id} failed: {error}. "
        "What was downloaded is kept: start again to resume"
    )


def _cause(error: Exception) -> str:
    from huggingface_hub import constants, errors

    cause = error.__cause__ or error
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it to download"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answered {cause.response.status_code}. Try again later"
    return f"{constants.ENDPOINT} cannot be reached ({cause}). Check the network and HF_ENDPOINT"


def _refused(model_id: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return f"{constants.ENDPOINT} refused the token for model {model_id}: check HF_TOKEN"
    return f"{constants.ENDPOINT} answered {status} for model {model_id}. Try again later"
