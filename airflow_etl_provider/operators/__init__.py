"""Operators: extract, validate, publish."""
