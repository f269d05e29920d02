"""Builders: three ways to make results, behind one protocol (`outcomes.Builder`)."""
