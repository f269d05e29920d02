/**
  What must hold of a variant's closure, checked at evaluation, where it costs seconds; the build
  would find some of it hours later, and the rest never: one torch, one of every other Python
  package, one CUDA, and the compiler that nvcc takes.

  # Type
  `closure :: { lib, package, cudaPackages } -> { modules :: [Derivation]; problems :: [String]; }`
*/
{
  lib,
  package,
  cudaPackages,
}:
let
  inherit (builtins)
    attrValues
    concatMap
    filter
    genericClosure
    groupBy
    isAttrs
    ;

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
  ) (attrValues (groupBy (drv: drv.pname or drv.name) modules));

  # The CUDA libraries of every module, where they are not the set's own of that name.
  cudaInputs = filter (drv: isAttrs drv && drv ? pname && cudaPackages ? ${drv.pname}) (
    concatMap (drv: drv.buildInputs or [ ] ++ drv.nativeBuildInputs or [ ]) python
  );
  foreign = lib.unique (
    map (drv: "a second CUDA: ${drv.name} beside ${cudaPackages.${drv.pname}.name}") (
      filter (drv: drv.drvPath != cudaPackages.${drv.pname}.drvPath) cudaInputs
    )
  );

  accepted = cudaPackages.backendStdenv.cc.version;
  compilers = [ package.stdenv.cc ] ++ filter (drv: drv.isGNU or false) (propagated package);
  wrong = lib.unique (
    map (cc: "compiler GCC ${cc.version}: nvcc of this CUDA goes with ${accepted}") (
      filter (cc: cc.version != accepted) compilers
    )
  );
in
{
  inherit modules;
  problems = twice ++ foreign ++ wrong;
}
