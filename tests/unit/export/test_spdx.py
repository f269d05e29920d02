"""Licences of packages as one SPDX expression: nothing is claimed that a package does not say."""

from __future__ import annotations

import pytest

from vllm_variants.export import spdx


@pytest.mark.parametrize(
    ("name", "expression"),
    [
        ("MIT", "MIT"),
        ("mit", "MIT"),
        ("MIT License", "MIT"),
        ("Apache License,  Version 2.0", "Apache-2.0"),
        ("Apache-2.0 OR BSD-3-Clause", "Apache-2.0 OR BSD-3-Clause"),
        ("LicenseRef-NVIDIA-Proprietary", "LicenseRef-NVIDIA-Proprietary"),
        ("NVIDIA Proprietary Software", "LicenseRef-NVIDIA-Proprietary"),
        ("BSD", "LicenseRef-BSD"),
        (
            "BSD-derived (http://www.repoze.org/LICENSE.txt)",
            "LicenseRef-BSD-derived-http-www.repoze.org-LICENSE.txt",
        ),
        ("", "LicenseRef-tiktoken"),
    ],
)
def test_a_name_is_the_licence_that_it_means_or_a_reference(name: str, expression: str) -> None:
    assert spdx.expression(name, "tiktoken") == expression


def test_all_of_several_is_each_part_once_with_choices_in_parentheses_and_references_last() -> None:
    parts = ["MIT", "LicenseRef-a", "Apache-2.0 AND MIT", "MIT OR ISC", "(BSD-2-Clause OR 0BSD) AND Zlib"]
    expected = "Apache-2.0 AND (BSD-2-Clause OR 0BSD) AND MIT AND (MIT OR ISC) AND Zlib AND LicenseRef-a"
    assert spdx.all_of(parts) == expected
    assert spdx.expression(expected, "") == expected  # it is an expression
