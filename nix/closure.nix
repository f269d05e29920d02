/**
  What must hold of a variant's closure, checked at evaluation, where it costs seconds; the build
  would find some of it hours later, and the rest never: one torch, one of every other Python
  package, one CUDA, the compiler that nvcc takes, and vLLM compiled for the planned capabilities.

  CUDA is looked for in the inputs of every Python module, in what a join among them (symlinkJoin) is
  made of, and one level deeper in those inputs that are no Python modules, such as MAGMA. A library
  further down, or in the text of a build phase, is not seen.

  # Type
  ```
  closure :: { lib, package, cudaPackages, capabilities :: [Capability] }
    -> { modules :: [Derivation]; problems :: [String]; }
  ```
*/
{
  lib,
  package,
  cudaPackages,
  capabilities,
}:
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    elem
    filter
    genericClosure
    getContext
    groupBy
    head
    isAttrs
    isString
    mapAttrs
    match
    parseDrvName
    ;

  comma = lib.concatStringsSep ", ";
  label = drv: drv.pname or drv.name;
  node = drv: {
    key = drv.outPath;
    inherit drv;
  };
  propagated = drv: filter isAttrs (drv.propagatedBuildInputs or [ ]);
  reached = map (n: n.drv) (genericClosure {
    startSet = map node (propagated package);
    operator = n: map node (propagated n.drv);
  });

  modules = filter (drv: drv ? pythonModule) reached;
  python = [ package ] ++ modules;

  twice = concatMap (
    group:
    let
      paths = lib.unique (map (drv: drv.outPath) group);
    in
    lib.optional (lib.length paths > 1) "two of one Python package: ${lib.concatStringsSep " and " paths}"
  ) (attrValues (groupBy label modules));

  # ── one CUDA ──
  inputs = drv: filter isAttrs (drv.buildInputs or [ ] ++ drv.nativeBuildInputs or [ ]);
  within =
    module:
    let
      direct = inputs module;
      deeper = concatMap (drv: inputs drv ++ propagated drv) (filter (drv: !(drv ? pythonModule)) direct);
    in
    concatMap parts (direct ++ deeper);

  # An input, and what it joins: derivations, or the paths of some as text, which remembers them.
  parts = drv: [ drv ] ++ concatMap part (drv.paths or [ ]);
  part =
    piece:
    if isAttrs piece then
      [ piece ]
    else if isString piece then
      map inText (attrNames (getContext piece))
    else
      [ ];
  # "/nix/store/…-cuda12.8-libcublas-12.8.4.1.drv"
  inText =
    drvPath:
    let
      name = head (match "[^-]*-(.*)\\.drv" (baseNameOf drvPath));
      title = (parseDrvName name).name;
      prefixed = match "cuda[0-9.]+-(.*)" title;
    in
    {
      inherit name drvPath;
      pname = if prefixed == null then title else head prefixed;
    };

  # A package that the CUDA set has by this name, and has another.
  isForeign =
    drv:
    let
      own = cudaPackages.${drv.pname};
    in
    drv ? pname && cudaPackages ? ${drv.pname} && isAttrs own && own ? drvPath && own.drvPath != drv.drvPath;
  strangers = concatMap (
    module:
    map (drv: {
      text = "${drv.name} beside ${cudaPackages.${drv.pname}.name}";
      module = label module;
    }) (filter isForeign (within module))
  ) python;
  foreign = attrValues (
    mapAttrs (
      text: found: "a second CUDA: ${text}, in ${comma (lib.unique (map (one: one.module) found))}"
    ) (groupBy (one: one.text) strangers)
  );

  # ── one compiler, the one that nvcc takes ──
  accepted = cudaPackages.backendStdenv.cc.version;
  compilers = [ package.stdenv.cc ] ++ filter (drv: drv.isGNU or false) (propagated package);
  wrong = lib.unique (
    map (cc: "compiler GCC ${cc.version}: nvcc of this CUDA goes with ${accepted}") (
      filter (cc: cc.version != accepted) compilers
    )
  );

  # ── the planned capabilities, no fewer and no more ──
  lists = concatMap (
    flag:
    let
      list = match "-DTORCH_CUDA_ARCH_LIST(:[A-Z]+)?=(.*)" flag;
    in
    lib.optional (list != null) (lib.last list)
  ) (filter isString (package.cmakeFlags or [ ]));
  compiled = concatMap (
    list: map (item: head (match "([^+]*)([+]PTX)?" item)) (filter isString (builtins.split ";" list))
  ) lists;
  same = all (c: elem c capabilities) compiled && all (c: elem c compiled) capabilities;
  others = lib.optional (!same) (
    if lists == [ ] then
      "vLLM is compiled for nobody knows which capabilities: no TORCH_CUDA_ARCH_LIST in its cmakeFlags"
    else
      "vLLM is compiled for ${comma compiled}, not for ${comma capabilities}"
  );
in
{
  inherit modules;
  problems = concatLists [
    twice
    foreign
    wrong
    others
  ];
}
