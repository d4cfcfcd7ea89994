"""A simulated board that speaks through pynvml's own calls (``--energy-source=simulated``)."""
