/**
  Shell for a wrapper (`makeWrapper --run`): offers the host's NVIDIA driver to the program, as
  driver.sh finds it. Nothing happens on a host without one, and a search that fails stops nothing.

  # Type
  `offerDriver :: { coreutils, runtimeShell } -> String`
*/
{ coreutils, runtimeShell }:
''
  driver=$(PATH=${coreutils}/bin ${runtimeShell} ${./driver.sh}) || driver=
  if [ -n "$driver" ]; then
    export LD_LIBRARY_PATH=$driver''${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  elif [ -e /run/opengl-driver/lib/libcuda.so.1 ]; then
    driver=/run/opengl-driver/lib
  fi
  # Triton does not ask the loader: it runs /sbin/ldconfig, which NixOS lacks, unless told.
  if [ -n "$driver" ] && [ -z "''${TRITON_LIBCUDA_PATH-}" ]; then
    export TRITON_LIBCUDA_PATH=$driver
  fi
  unset driver''
