"""What people have: environments, wheelhouses, locks, container images. Each is read into libraries."""
