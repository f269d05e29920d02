"""`vllm-variants advisories`: known vulnerabilities of the releases, and OSV asked for new ones."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from vllm_variants import data, documents
from vllm_variants.cli import known_advisories
from vllm_variants.cli.options import Json
from vllm_variants.cli.output import out, print_json, say, table
from vllm_variants.cli.rules import requires, rules
from vllm_variants.errors import InputError, ResourceError
from vllm_variants.model import advisories as files
from vllm_variants.model import matrix, renewal
from vllm_variants.system import http, osv, together

if TYPE_CHECKING:
    from vllm_variants.model.advisories import Advisories


@rules(requires("--service", "--refresh", hint="it says whom --refresh asks"))
def advisories(
    releases: Annotated[
        list[str] | None, typer.Argument(metavar="RELEASE", help="All releases if absent.")
    ] = None,
    refresh: Annotated[bool, typer.Option("--refresh", help="Ask OSV (osv.dev) first.")] = False,
    service: Annotated[
        str | None, typer.Option("--service", metavar="URL", help=f"A mirror, instead of {osv.SERVICE}.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the advisories that are known to affect each release; never complete, and of the day they bear.

    --refresh writes what OSV says to advisories/ of a checkout, or to the cache folder of an installed one.
    """
    rows = matrix.load()
    chosen = [rows.release(name).name for name in releases or rows.releases]
    if refresh:
        _refresh(chosen, service or osv.SERVICE)
    known = [known_advisories.of(name) for name in chosen]
    if as_json:
        print_json({"schema": documents.ADVISORIES, "releases": [each.as_dict() for each in known]})
        return
    for each in known:
        _show(each)
    say("none of these lists is complete: they are what public records said on their day")


def _refresh(releases: list[str], service: str) -> None:
    """Ask for every release, and only then write: all files or none."""
    old = [known_advisories.of(name) for name in releases]
    every = osv.query(service, "vllm", None)
    place = http.without_credentials(service)
    if not every:
        raise ResourceError(
            f"{place} has no advisory of any vLLM, so it is no copy of OSV's records; nothing was renewed",
            hint="name another: --service URL",
        )
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    try:
        new = [renewal.renewed(known, osv.query(service, "vllm", known.release), day, every) for known in old]
    except InputError as error:
        raise ResourceError(f"{place}: {error.message}", hint="name another: --service URL") from error
    folder = data.root() / "advisories" if data.checkout() else known_advisories.cache()
    folder.mkdir(parents=True, exist_ok=True)
    together.write({folder / f"{each.release}.toml": files.text(each) for each in new})
    for each in new:
        say(f"{folder / each.release}.toml: {each.sentence}")
    if data.checkout():
        say("the README lists them too: vllm-variants docs")


def _show(known: Advisories) -> None:
    out.print(f"vLLM {known.release}: {known.sentence}")
    if not known.known:
        return
    rows = table("advisory", "severity", "affects", "where", "source")
    rows.columns[0].no_wrap = True  # a name that is cut is no name
    for column in rows.columns[3:]:
        column.overflow = "fold"
    for each in known.known:
        ids = "\n".join((each.id, *each.aliases))
        versions = f"{each.introduced or '?'} to {each.fixed or '?'}"
        rows.add_row(ids, each.severity or "?", versions, each.condition, each.source)
    out.print(rows)
