"""The release gate, model card, manifest, and upload."""
