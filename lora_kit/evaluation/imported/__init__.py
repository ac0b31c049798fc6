"""Results that other programs measured: read, paired and judged without a model."""
