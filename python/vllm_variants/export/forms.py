"""Which module makes which form; each is imported when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol

from vllm_variants.export.destinations import Destination, Form
from vllm_variants.export.options import Options, Talk
from vllm_variants.export.report import Exported
from vllm_variants.model.results import Result

_MODULES = {
    Form.FOLDER: "folder",
    Form.TAR: "archive",
    Form.OCI: "oci",
    Form.OCI_ARCHIVE: "oci",
    Form.WHEELS: "wheelhouse",
}
SEVERAL = frozenset({Form.OCI, Form.OCI_ARCHIVE, Form.WHEELS})
"""The forms that take several variants at once."""


class Exporter(Protocol):
    """Makes one form, whole or not at all; the destination is new and can be written to."""

    def __call__(
        self, results: Sequence[Result], destination: Destination, options: Options, talk: Talk
    ) -> Exported:
        """Export; raises an `Error`, and then nothing is there."""


def exporter(form: Form) -> Exporter:
    """What makes a form."""
    found: Exporter = import_module(f"vllm_variants.export.{_MODULES[form]}").export
    return found
