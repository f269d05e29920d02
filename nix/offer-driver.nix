/**
  Shell for a wrapper (`makeWrapper --run`): offers the host's NVIDIA driver to the program, as
  driver.sh finds it. Nothing happens on a host without one, and a search that fails stops nothing.

  # Type
  `offerDriver :: { coreutils, runtimeShell } -> String`
*/
{ coreutils, runtimeShell }:
''
  _driver=$(PATH=${coreutils}/bin ${runtimeShell} ${./driver.sh}) || _driver=
  if [ -n "$_driver" ]; then
    export LD_LIBRARY_PATH=$_driver''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  elif [ -e /run/opengl-driver/lib/libcuda.so.1 ]; then
    _driver=/run/opengl-driver/lib
  fi
  # Triton does not ask the loader: it runs /sbin/ldconfig, which NixOS lacks, unless told.
  if [ -n "$_driver" ] && [ -z "''${TRITON_LIBCUDA_PATH-}" ]; then
    export TRITON_LIBCUDA_PATH=$_driver
  fi
  unset _driver''
