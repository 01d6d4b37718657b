"""Opening a data set of the Hugging Face hub."""

from typing import Any

from flatlab.data.known import KNOWN
from flatlab.data.rows import reason, unreadable
from flatlab.data.samples import Source
from flatlab.errors import UsageError

HUB_TIMEOUT = 5.0
"""Seconds to wait for the hub's first answer."""


def open_hub(source: Source) -> Any:
    """Download the data set and return its splits by name, as `datasets` has them.

    Raises:
        UsageError: it does not exist, cannot be reached, or is none that the library opens.
    """
    import datasets

    _require_reachable(source)
    try:
        return datasets.load_dataset(source.hub, source.reading.configuration)
    except ConnectionError as error:
        raise _not_found(source, f"it cannot be reached: {reason(error)}") from error
    except Exception as error:
        refusal = unreadable(source, error)
        if source.reading.configuration is None and "config" in str(error).lower():
            refusal = UsageError(f"{refusal} Name one with --hub-config (hub_config in a file).")
        raise refusal from error


def _require_reachable(source: Source) -> None:
    """Ask the hub once, briefly: the library itself would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().dataset_info(source.hub, timeout=HUB_TIMEOUT)
    except OfflineModeIsEnabled:
        return  # asked for by HF_HUB_OFFLINE: the library may have the data in its own cache
    except HFValidationError as error:
        raise UsageError(
            f"'{source.name}' is neither a folder nor the name of a data set: name a folder of Parquet files or "
            f"images, one of digits, {', '.join(KNOWN)}, or a data set of the Hugging Face hub (organisation/name)."
        ) from error
    except RepositoryNotFoundError as error:
        raise _not_found(source, "there is none of this name") from error
    except Exception as error:
        raise _not_found(source, f"it cannot be reached: {reason(error)}") from error


def _not_found(source: Source, why: str) -> UsageError:
    looked = f"in {' or '.join(map(str, source.looked_in))}" if source.looked_in else "locally (no folder was given)"
    return UsageError(
        f"The data set '{source.name}' was found neither {looked} nor on the Hugging Face hub as '{source.hub}' "
        f"({why}): connect to the internet, or put its Parquet files into a folder {source.name} and give the "
        "folder around that with --data-root or FLATLAB_DATA."
    )
