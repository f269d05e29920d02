"""What only a checkout needs: pins, generated docs, Flox's expressions."""
