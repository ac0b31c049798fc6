"""Merging an adapter into its backbone, shard by shard, and verifying the result."""
