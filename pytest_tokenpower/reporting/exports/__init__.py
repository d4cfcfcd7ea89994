"""A report in the formats of other programs. Pure functions from a report to text."""
