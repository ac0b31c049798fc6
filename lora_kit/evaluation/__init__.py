"""Suites x arms -> ledger -> statistics -> verdict and report."""
