"""A result in a form that other tools consume: a folder, an archive, an OCI image, a wheelhouse.

    destinations     where it goes: FORM:PATH, and what is looked at before work starts
    sources          what is exported: whole results, made for a platform that the form can take
    options          what a person may ask of the forms
    report           what was made: the manifest in every export, and what `--json` prints

Each form is one module with one function, `export(results, destination, options, talk) -> Exported`;
the table of them is `forms`.
"""
