/**
  What a developer of this project needs on PATH.

  # Type
  `shell :: { mkShell, … } -> Derivation`
*/
{
  mkShell,
  python312,
  cli,
  git,
  nix-prefetch-github,
  nixfmt-tree,
  ruff,
  uv,
}:
mkShell {
  packages = [
    (python312.withPackages (python: cli.dependencies ++ [ python.pytest ]))
    git
    nix-prefetch-github
    nixfmt-tree
    ruff
    uv
  ];
}
