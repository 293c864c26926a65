"""Change a Shar folder after the extraction of its fields."""

import gzip
import io
import tarfile

from icefall_kd.fields.format import cuts_path, tar_path


def rewrite_cuts(folder, shard, change):
    """Apply ``change`` to the list of lines of one shard's cuts."""
    path = cuts_path(folder, shard)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress(("\n".join(change(lines)) + "\n").encode()))


def rewrite_tar(path, rename):
    """Rename each member to ``rename(id)``; None drops it."""
    with tarfile.open(path) as tar:
        members = [(info, tar.extractfile(info).read()) for info in tar]
    with tarfile.open(path, "w") as tar:
        for info, data in members:
            stem, dot, suffix = info.name.rpartition(".")
            new = rename(stem)
            if new is not None:
                info.name = new + dot + suffix
                tar.addfile(info, io.BytesIO(data))


def rename_cuts(folder, shard, rename):
    """Rename the cuts of a shard, but not their recordings."""

    def change(lines):  # the id of the cut is first
        ids = [line.split('"')[3] for line in lines]
        return [
            line.replace(f'{{"id": "{i}"', f'{{"id": "{rename(i)}"', 1)
            for line, i in zip(lines, ids)
        ]

    rewrite_cuts(folder, shard, change)
    rewrite_tar(tar_path(folder, "recording", shard), rename)
