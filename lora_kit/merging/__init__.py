"""Shards in -> shards out, then compared with base + adapter."""
