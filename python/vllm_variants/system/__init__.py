"""The outside world, one module each: files, processes, folders, progress."""
