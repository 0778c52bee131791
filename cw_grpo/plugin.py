"""The only module that touches verl's registries and hooks."""
