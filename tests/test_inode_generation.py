"""The generation that goes with an inode number to the kernel, and by NFS to other computers."""

from __future__ import annotations

import uuid

from tapefs.entries import ROOT_INO, Inode
from tapefs.fuse.attributes import Presentation, inode_generation


def test_a_number_names_another_file_on_another_volume() -> None:
    volumes = [uuid.UUID(int=number) for number in range(100)]
    generations = {
        Presentation(generation=inode_generation(volume)).attributes(Inode(7, 0o100644)).generation
        for volume in volumes
    }
    assert len(generations) == len(volumes)
    assert all(0 < generation < 1 << 32 for generation in generations), "what the kernel keeps"


def test_the_root_is_what_the_kernel_takes_it_for() -> None:
    shown = Presentation(generation=inode_generation(uuid.UUID(int=1)))
    assert shown.attributes(Inode(ROOT_INO, 0o40755)).generation == 0
