{
  description = "A model of nixpkgs, small enough to read: see README.md";

  outputs = _: {
    lib = import ./lib.nix;
  };
}
