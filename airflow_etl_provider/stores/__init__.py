"""Watermark stores: where people and other tools read how far a stream is."""
