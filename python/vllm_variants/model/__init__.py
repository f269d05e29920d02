"""What the project is about, as values: capabilities, releases and variants, results."""
