"""What the exceptions of disks and object stores mean to whoever started a job. Imports nothing heavy."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
# The libraries below fsspec, whose exceptions often are no OSError.
_LIBRARIES = {"adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "google", "s3fs"}

TEMPORARY_FOLDER = "the folder for temporary files (TMPDIR)"

_ON = "then run the same command again with --on-existing resume"


class StorageError(OSError):
    """A disk or an object store that does not do its work: full, closed to us, gone, out of reach.

    The message says which file, what was wrong and what to do, in one line.
    """


@contextmanager
def explained(place: str, trouble: str, *, passing: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Turns what a filesystem raises in the block into StorageError("PLACE: TROUBLE: …").

    Exceptions of the classes in `passing` are raised as they are, unless it is the whole bucket that is not there.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        from_storage = isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _LIBRARIES
        if not from_storage or (isinstance(error, passing) and store_code(error) != "NoSuchBucket"):
            raise
        raise StorageError(f"{place}: {trouble}: {_reason_and_advice(error)}") from error


def store_code(error: BaseException | None) -> str | None:
    """The object store's own code, such as NoSuchBucket. fsspec's exceptions keep it only in what they came from."""
    while error is not None:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
        error = error.__cause__ or error.__context__
    return None


def _reason_and_advice(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        return f"no room left ({error}); make room, {_ON}"
    if store_code(error) == "NoSuchBucket":
        return f"there is no such bucket; create it or correct the name, {_ON}"
    if isinstance(error, PermissionError) or number in _FORBIDDEN:
        return f"permission denied ({_in_one_line(error)}); see to the rights of this user or of its credentials, {_ON}"
    if "Credentials" in type(error).__name__:
        return f"no credentials ({_in_one_line(error)}); set them as the store's own tools expect them, {_ON}"
    return f"{type(error).__name__}: {_in_one_line(error)}; see that the storage is in place and can be reached, {_ON}"


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
