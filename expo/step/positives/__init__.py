"""Positives: which groups may get one (gates), what it is (sources), which candidates pass and are taken (filters,
selection), what is measured of them (properties), and β, their weight in the loss, by step (schedules)."""
