/**
  A nixpkgs that flake.lock names, for evaluations that are no flake: Flox, `nix-build`. The same
  store path as the flake's input, since narHash says what is in it.

  # Type
  `nixpkgs :: InputName -> { outPath :: Path; rev :: String; }`
*/
input:
let
  lock = builtins.fromJSON (builtins.readFile ../flake.lock);
  inherit (lock.nodes.${lock.nodes.${lock.root}.inputs.${input}}) locked;

  fetchers = {
    github = fetchTarball {
      url = "https://github.com/${locked.owner}/${locked.repo}/archive/${locked.rev}.tar.gz";
      sha256 = locked.narHash;
    };
    path = builtins.path {
      name = "source";
      inherit (locked) path;
      sha256 = locked.narHash;
    };
  };
  tree =
    fetchers.${locked.type}
      or (throw "flake.lock has ${input} from \"${locked.type}\": github and path are understood here");
in
{
  outPath = if locked ? dir then "${tree}/${locked.dir}" else tree;
}
// (if locked ? rev then { inherit (locked) rev; } else { })
