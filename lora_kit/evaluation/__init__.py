"""Suites x arms -> ledger -> verdict and report."""
