"""Data sets of the Hugging Face hub as its library keeps them once they were downloaded: no hub is needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest


class HubCache:
    """The library's cache in a folder of its own, offline."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        import datasets

        self.folder = folder
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(self, name: str, configuration: str, splits: Mapping[str, Any]) -> None:
        """Keep `splits` (`datasets.Dataset`) as the `configuration` of the data set someone/`name`."""
        import datasets

        made = self.folder / f"{name}-{configuration}"
        files = {split: str(made / f"{split}.parquet") for split in splits}
        for split, rows in splits.items():
            rows.to_parquet(files[split])
        datasets.load_dataset("parquet", data_files=files, cache_dir=str(made))
        info = next(made.glob("parquet/*/*/*/dataset_info.json"))
        info.write_text(
            json.dumps({**json.loads(info.read_text()), "dataset_name": name, "config_name": configuration})
        )
        for arrow in info.parent.glob("*.arrow"):
            arrow.rename(arrow.with_name(arrow.name.replace("parquet-", f"{name}-")))
        place = self.folder / "cache" / f"someone___{name}" / configuration / "0.0.0"
        place.mkdir(parents=True)
        info.parent.rename(place / "0")
