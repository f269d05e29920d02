"""A result in a form that other tools consume: a folder, an archive, an OCI image, a wheelhouse.

    destinations     where it goes: FORM:PATH, and what is looked at before work starts
    sources          what is exported: whole results, made for a platform that the form can take
    options          what a person may ask of the forms
    report           what was made: the manifest in every export, and what `--json` prints
    facts            the bill of materials (sbom) and the licences (spdx), which every export carries
    others           what is in an export besides Python packages (host_packages, debian_copyright)
    packages         what is installed; `checked` holds its files to their RECORDs while they are read

Folders, archives and images are of one `tree`, which `portable` plans: a result, with an `interpreter` of
its own made in a `workspace`. `tarring` writes it; `layers` divides it for an image, which `image_writer`
puts into a `layout`, on a base (`base_debian`, `base_layout`), and `push` copies to a registry.

A wheelhouse is made of `changes` (what the build changed of the packages), `published` (the wheels on the
index), `pins` (requirements that the release does not keep), `repack` with `members` and `canonical_zip` (one
wheel), `variant_wheels`, `wheel_lists` (requirements.txt, the manifest) and `downloads`.

Each form is one module with one function, `export(results, destination, options, talk) -> Exported`;
the table of them is `forms`.
"""
