"""A result in a form that other tools consume: a folder, an archive, an OCI image, a wheelhouse.

    destinations     where it goes: FORM:PATH, and what is looked at before work starts
    sources          what is exported: whole results, made for a platform that the form can take
    options          what a person may ask of the forms
    report           what was made: the manifest in every export, and what `--json` prints
    facts            the bill of materials (sbom) and the licences, which every export carries

A wheelhouse is made of `packages` (what is installed), `changes` (what the build changed of it), `published`
(the wheels on the index), `pins` (requirements that the release does not keep), `repack` with `members` and
`canonical_zip` (one wheel), `variant_wheels`, `wheel_lists` (requirements.txt, the manifest) and `downloads`.

Each form is one module with one function, `export(results, destination, options, talk) -> Exported`;
the table of them is `forms`.
"""
