"""The form `tar.zst`: the tree of the form `folder` in one compressed file, which unpacks to one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence

from vllm_variants.errors import resource_error
from vllm_variants.export import destinations, portable, tarring, workspace
from vllm_variants.export.destinations import Destination
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.report import Exported
from vllm_variants.export.tarring import Compression, Packed
from vllm_variants.model.results import Result
from vllm_variants.store import disk
from vllm_variants.system import atomic

_RATIO = 0.75
"""No result was seen that compresses to more of its size: most of its code is compressed already."""


def export(results: Sequence[Result], destination: Destination, options: Options, talk: Talk) -> Exported:
    """Make the archive; the same result gives the same bytes.

    Raises `UnsupportedError` for a result of another platform, `ResourceError` where the disk refuses.
    """
    (result,) = results
    destinations.require_room(destination, int(disk.disk_use(result.path)[0] * _RATIO))
    try:
        with workspace.opened() as work, atomic.new_file(destination.path, 0o644) as new:
            (made,) = portable.prepared(results, destination.form, options, talk, work)
            with os.fdopen(os.dup(new.descriptor), "wb") as file:
                packed = Packed(file, Compression.ZSTD)
                with tarring.writing(packed) as writer:
                    tarring.add_tree(writer, made.tree.entries, f"{made.name}/", talk.advance)
                packed.finish()
            destinations.require_absent(destination)
            new.publish()
    except OSError as error:
        raise resource_error(error) from error
    facts = {"python": made.runtime.as_dict(), "digest": packed.digest, "folder": made.name}
    return Exported(destination, (result,), packed.size, facts)
