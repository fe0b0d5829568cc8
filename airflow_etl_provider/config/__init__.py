"""Pipelines as values: models of a pipeline, and YAML files read into them."""
