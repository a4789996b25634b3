"""Positives: which groups may get one and what it is (sources), which candidates pass and are taken (filters,
selection), what is measured of them (properties)."""
