/**
  A nixpkgs that flake.lock names, for evaluations that are no flake: Flox, `nix-build`. The same
  store path as the flake's input, since narHash says what is in it.

  # Type
  `nixpkgs :: InputName -> { outPath :: Path; rev :: String; }`
*/
input:
let
  lock = builtins.fromJSON (builtins.readFile ../flake.lock);
  locked = lock.nodes.${lock.nodes.${lock.root}.inputs.${input}}.locked;
  fetch = {
    github = fetchTarball {
      url = "https://github.com/${locked.owner}/${locked.repo}/archive/${locked.rev}.tar.gz";
      sha256 = locked.narHash;
    };
    # A checkout of one's own: `nix flake lock --override-input nixpkgs path:…`.
    path = locked.path;
  };
in
{
  outPath =
    fetch.${locked.type} or (throw "flake.lock has ${input} from ${locked.type}: github and path are understood here");
}
// (if locked ? rev then { inherit (locked) rev; } else { })
