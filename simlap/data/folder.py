"""Image folders as ImageNet has them: one folder per class, named by it, with its images inside at any depth."""

from __future__ import annotations

import os
from pathlib import PurePosixPath

from pyarrow import fs as pafs

from simlap.config.schema import FolderData
from simlap.data.files import FileSource, ImageFile
from simlap.data.places import filesystem
from simlap.data.source import Part
from simlap.errors import DataError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
"""Of the files that are images. Others are left alone, and so is what begins with a dot."""


class _PartFolder:
    """The folder of the training or the test part."""

    def __init__(self, part: Part, uri: str) -> None:
        self.key = f"data.{part}"
        self.fs, self.root = filesystem(self.key, uri)
        self.where = uri if "://" in uri else self.root
        try:
            self.class_names, self._found = self._list()
        except OSError as error:
            raise DataError(f"cannot list {self.where}: {error}", key=self.key) from error

    def _list(self) -> tuple[list[str], list[tuple[str, str, int]]]:
        """The classes, and (class, path inside the folder, size) of every image, sorted by path."""
        kind = self.fs.get_file_info(self.root).type
        if kind != pafs.FileType.Directory:
            problem = "no such folder" if kind == pafs.FileType.NotFound else "a file, not a folder of class folders"
            raise DataError(f"{problem}: {self.where}", key=self.key)
        classes: set[str] = set()
        others: dict[str, str] = {}
        images: list[tuple[str, str, int]] = []
        for info in self.fs.get_file_info(pafs.FileSelector(self.root, recursive=True)):
            path = info.path[len(self.root) :].lstrip("/")
            steps = PurePosixPath(path).parts
            if any(step.startswith(".") for step in steps):
                continue
            is_image = info.type == pafs.FileType.File and path.lower().endswith(EXTENSIONS)
            if info.type == pafs.FileType.Directory or len(steps) > 1:
                classes.add(steps[0])
            if is_image and len(steps) == 1:
                raise DataError(f"an image outside the class folders: {info.path}", key=self.key)
            if is_image:
                images.append((steps[0], path, info.size))
            elif info.type == pafs.FileType.File:
                others.setdefault(steps[0], steps[-1])
        if not classes:
            raise DataError(f"no class folder in {self.where} (one folder per class, images inside)", key=self.key)
        empty = sorted(classes - {name for name, _, _ in images})
        if empty:
            more = f" (nor in {len(empty) - 1} more class folders)" if len(empty) > 1 else ""
            there = f"; it holds {others[empty[0]]!r}" if empty[0] in others else ""
            raise DataError(
                f"no image in {self.where}/{empty[0]}{more}{there}; images end with {', '.join(EXTENSIONS)}",
                key=self.key,
            )
        return sorted(classes), sorted(images, key=lambda image: image[1])

    def files(self, class_names: list[str]) -> list[ImageFile]:
        numbers = {name: label for label, name in enumerate(class_names)}
        return [ImageFile(f"{self.root}/{path}", path, size, numbers[name]) for name, path, size in self._found]

    def read(self, path: str) -> bytes:
        with self.fs.open_input_stream(path) as stream:
            content: bytes = stream.read()
        return content

    def contains(self, other: _PartFolder) -> bool:
        """Whether another part's folder is this one or inside it, wherever links lead."""
        if type(self.fs) is not type(other.fs):
            return False
        local = isinstance(self.fs, pafs.LocalFileSystem)
        here, there = (os.path.realpath(part.root) if local else part.root for part in (self, other))
        return f"{there}/".startswith(f"{here}/")


def open_folder(data: FolderData) -> FileSource:
    """Classes sorted by name, images sorted by path. Lists the folders, reads no file. Raises DataError."""
    folders: dict[Part, _PartFolder] = {
        "train": _PartFolder("train", data.train),
        "test": _PartFolder("test", data.test),
    }
    train, test = folders["train"], folders["test"]
    if train.contains(test) or test.contains(train):
        raise DataError(
            f"{test.where} and the training folder {train.where} overlap; the test set must hold other images",
            key=test.key,
        )
    if train.class_names != test.class_names:
        missing = sorted(set(train.class_names) - set(test.class_names))
        extra = sorted(set(test.class_names) - set(train.class_names))
        parts = [f"{what} {_some(names)}" for what, names in (("lacks", missing), ("also has", extra)) if names]
        raise DataError(
            f"the classes in {test.where} are not those in {train.where}: it {' and '.join(parts)}", key=test.key
        )
    return FileSource(
        "folder",
        {part: folder.files(train.class_names) for part, folder in folders.items()},
        train.class_names,
        read=lambda part, path: folders[part].read(path),
        where=lambda part: folders[part].where,
        key=lambda part: folders[part].key,
    )


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
