# A C compiler: a derivation with the attributes that tell a GCC and its version.
{ system }:
version:
derivation {
  name = "gcc-wrapper-${version}";
  inherit system;
  builder = "/bin/sh";
  args = [
    "-c"
    "PATH=/usr/bin:/bin:/run/current-system/sw/bin; mkdir -p $out/bin; echo ${version} > $out/bin/gcc"
  ];
}
// {
  pname = "gcc-wrapper";
  inherit version;
  isGNU = true;
  meta = { };
}
