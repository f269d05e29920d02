{
  description = "vLLM for exactly your GPU: one variant per compute capability, from one matrix";

  # One input a release of variants.toml: `nixpkgs` for the default one, `nixpkgs-X_Y_Z` for the others.
  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/ed142ab1b3a092c4d149245d0c4126a5d7ea00b0";
    nixpkgs-0_11_2.url = "github:NixOS/nixpkgs/1306659b587dc277866c7b69eb97e5f07864d8c4";
  };

  outputs = inputs: import ./nix/outputs.nix (removeAttrs inputs [ "self" ]);
}
