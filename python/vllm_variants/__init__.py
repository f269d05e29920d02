"""Per-GPU-architecture builds of vLLM: what the command line does, for programs (docs/api.md).

Each name is imported when it is first used, so that `import vllm_variants` costs nothing and changes nothing.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False  # True to type checkers, as typing's; and `import typing` would cost more than the rest
if TYPE_CHECKING:
    from vllm_variants.api import audit_path as audit_path
    from vllm_variants.api import build as build
    from vllm_variants.api import build_all as build_all
    from vllm_variants.api import detect as detect
    from vllm_variants.api import export_results as export_results
    from vllm_variants.api import load_matrix as load_matrix
    from vllm_variants.api import load_schema as load_schema
    from vllm_variants.api import read_result as read_result
    from vllm_variants.api import report as report
    from vllm_variants.api import request as request
    from vllm_variants.api import slim as slim
    from vllm_variants.api import source_builder as source_builder
    from vllm_variants.api import verify_result as verify_result
    from vllm_variants.audit.library import LibraryAudit as LibraryAudit
    from vllm_variants.audit.report import AuditReport as AuditReport
    from vllm_variants.builders.outcomes import Builder as Builder
    from vllm_variants.builders.outcomes import Outcome as Outcome
    from vllm_variants.errors import AuditError as AuditError
    from vllm_variants.errors import Error as Error
    from vllm_variants.errors import ExitCode as ExitCode
    from vllm_variants.errors import InputError as InputError
    from vllm_variants.errors import MissingError as MissingError
    from vllm_variants.errors import ResourceError as ResourceError
    from vllm_variants.errors import UnsupportedError as UnsupportedError
    from vllm_variants.errors import UsageError as UsageError
    from vllm_variants.export.report import Exported as Exported
    from vllm_variants.fatbin.library import FileReport as FileReport
    from vllm_variants.fatbin.tree import SlimReport as SlimReport
    from vllm_variants.machine.detection import Detection as Detection
    from vllm_variants.machine.detection import GpuDetection as GpuDetection
    from vllm_variants.machine.gpus import Gpu as Gpu
    from vllm_variants.machine.gpus import Machine as Machine
    from vllm_variants.model.capability import Capability as Capability
    from vllm_variants.model.capability import Fit as Fit
    from vllm_variants.model.requests import Request as Request
    from vllm_variants.model.results import DamagedError as DamagedError
    from vllm_variants.model.results import Manifest as Manifest
    from vllm_variants.model.results import Result as Result
    from vllm_variants.model.variants import Matrix as Matrix
    from vllm_variants.model.variants import Release as Release
    from vllm_variants.model.variants import Stack as Stack
    from vllm_variants.model.variants import Variant as Variant
    from vllm_variants.verify.catalogue import Check as Check
    from vllm_variants.verify.judgement import JudgedCheck as JudgedCheck
    from vllm_variants.verify.judgement import Summary as Summary
    from vllm_variants.verify.judgement import summarise as summarise

_NAMES = {
    "api": (
        "audit_path",
        "build",
        "build_all",
        "detect",
        "export_results",
        "load_matrix",
        "load_schema",
        "read_result",
        "report",
        "request",
        "slim",
        "source_builder",
        "verify_result",
    ),
    "audit.library": ("LibraryAudit",),
    "audit.report": ("AuditReport",),
    "builders.outcomes": ("Builder", "Outcome"),
    "errors": (
        "AuditError",
        "Error",
        "ExitCode",
        "InputError",
        "MissingError",
        "ResourceError",
        "UnsupportedError",
        "UsageError",
    ),
    "export.report": ("Exported",),
    "fatbin.library": ("FileReport",),
    "fatbin.tree": ("SlimReport",),
    "machine.detection": ("Detection", "GpuDetection"),
    "machine.gpus": ("Gpu", "Machine"),
    "model.capability": ("Capability", "Fit"),
    "model.requests": ("Request",),
    "model.results": ("DamagedError", "Manifest", "Result"),
    "model.variants": ("Matrix", "Release", "Stack", "Variant"),
    "verify.catalogue": ("Check",),
    "verify.judgement": ("JudgedCheck", "Summary", "summarise"),
}
"""The same for the interpreter: modules, and the names that each gives."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = [*_HOMES]

if not TYPE_CHECKING:

    def __getattr__(name):
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        return value

    def __dir__():
        return sorted({*globals(), *_HOMES})
