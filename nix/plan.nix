/**
  What a variant will be, settled before any nixpkgs is looked at, or a refusal in one sentence.
  Pure.

  # Type
  ```
  plan :: {
    system :: String;
    variant :: String | { capability, system?, architecture?, gpus? };
    release :: String | Release ? default;
    extraCapabilities :: [Capability] ? [];
    ptx :: Bool ? false;
    torch :: null | "wheel" | "source" | { url, hash } ? null;
    slim :: Bool ? false;
  } -> Plan
  ```
*/
{
  system,
  variant,
  release ? null,
  extraCapabilities ? [ ],
  ptx ? false,
  torch ? null,
  slim ? false,
}:
let
  inherit (builtins)
    attrNames
    concatStringsSep
    elem
    filter
    head
    isAttrs
    isString
    ;

  capability = import ./capability.nix;
  matrix = import ./matrix.nix;
  names = import ./names.nix;

  comma = concatStringsSep ", ";

  chosenRelease =
    if release == null then
      matrix.default
    else if isAttrs release then
      # Of one's own, on the default's stack. Which nixpkgs packages it, only its author knows.
      matrix.default // { nixpkgs = null; } // release
    else
      matrix.releases.${release}
        or (throw "there is no release \"${release}\": ${comma (attrNames matrix.releases)} are declared in variants.toml");

  # A variant of one's own has the name that the matrix would give it.
  own =
    let
      main = capability.parse variant.capability;
      home = variant.system or system;
    in
    {
      short = capability.sm main + (if home == "aarch64-linux" then "-arm64" else "");
      architecture = "SM ${main}";
      gpus = [ ];
      related = [ ];
    }
    // variant
    // {
      capability = main;
      system = home;
    };
  chosenVariant = if isString variant then names.parse variant else own;

  capabilities = [ chosenVariant.capability ] ++ map capability.parse extraCapabilities;
  notIn = supports: filter (c: !(supports c)) capabilities;
  outsideCuda = notIn (capability.inCuda chosenRelease.cuda);
  embedded = filter capability.isTegra capabilities;
  outsideVllm = notIn capability.inVllm;
  outsideWheel = notIn (capability.inTorchWheel chosenRelease.torch);

  pinned = (import ./torch-wheels.nix).${chosenRelease.torch}.${system} or null;
  torchSource =
    if torch == "source" || (torch == null && system == "aarch64-linux" && pinned == null) then
      { from = "source"; }
    else
      {
        from = "wheel";
        wheel = if isAttrs torch then torch else pinned;
      };

  plan = {
    inherit
      system
      capabilities
      ptx
      slim
      ;
    inherit (chosenVariant)
      short
      capability
      architecture
      gpus
      ;
    name = names.full chosenRelease chosenVariant;
    # As nixpkgs' Python builder would name it.
    storeName = "python${chosenRelease.python}-${plan.name}-${chosenRelease.name}";
    description =
      "vLLM ${chosenRelease.name} for ${plan.architecture}, SM ${plan.capability}, CUDA ${chosenRelease.cuda}"
      + (if plan.gpus == [ ] then "" else ": ${comma plan.gpus}");
    release = chosenRelease;
    torch = torchSource;
  };
  refusals = [
    {
      when = chosenVariant.system != system;
      says = "${chosenVariant.short} is built on ${chosenVariant.system}, not on ${system}: build it there, or here with a builder of that system: .#packages.${chosenVariant.system}.${chosenVariant.short}";
    }
    {
      when = outsideCuda != [ ];
      says = "CUDA ${chosenRelease.cuda} does not compile for ${comma outsideCuda}: it does for ${comma (capability.ofCuda chosenRelease.cuda)}";
    }
    {
      when = embedded != [ ];
      says = "no variant is made for ${comma embedded}: an embedded SoC (Jetson, DRIVE) has the CUDA and the driver of JetPack, not those of nixpkgs";
    }
    {
      when = outsideVllm != [ ];
      says = "vLLM ${chosenRelease.name} has no kernels for ${comma outsideVllm}: the oldest capability is 7.0";
    }
    {
      when = !(isAttrs torch || elem torch [ null "wheel" "source" ]);
      says = "torch is \"wheel\", \"source\" or { url, hash }, not ${builtins.toJSON torch}";
    }
    {
      when = torch == "wheel" && system == "aarch64-linux" && pinned == null;
      says = "no CUDA wheel of torch ${chosenRelease.torch} is pinned for ${system}: give torch = { url = …; hash = …; }, pin one in nix/torch-wheels.nix, or leave torch out to build it from source";
    }
    {
      when = torchSource.from == "wheel" && outsideWheel != [ ];
      says = "the wheel of torch ${chosenRelease.torch} holds nothing that runs on ${comma outsideWheel}: set torch = \"source\"";
    }
  ];
  refused = filter (refusal: refusal.when) refusals;
in
if refused == [ ] then plan else throw (head refused).says
